"""A small Scrapy project that crawls the test site."""
