"""A project that uses what Scrapy offers, for comparing two ways to run it."""
