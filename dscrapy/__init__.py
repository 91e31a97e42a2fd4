"""Run Scrapy spiders on many machines."""

__version__ = "0.1.0"
