"""One spider, under dscrapy and under scrapy-redis."""
