"""Code that nobody here wrote, under plain Scrapy and under dscrapy: ``make foreign``.

Scrapy's own crawl test spiders and its mock server come from an unpacked source
distribution of Scrapy, or a checkout, given by path; nothing of them is copied here.
"""
