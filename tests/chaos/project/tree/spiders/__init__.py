"""The spider as plain Scrapy and dscrapy run it."""
