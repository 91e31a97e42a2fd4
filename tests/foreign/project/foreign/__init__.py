"""Scrapy's test spiders as a project."""
