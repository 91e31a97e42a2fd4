"""Committed items to feeds and files, through Scrapy's exporters."""
