"""The spider as scrapy-redis runs it."""
