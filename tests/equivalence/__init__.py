"""The same spiders under plain Scrapy and under dscrapy: the same items, requests
and stats; and again while everything is killed."""
