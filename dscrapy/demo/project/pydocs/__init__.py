"""A Scrapy project like any other; nothing in it knows of dscrapy."""
