"""What of Scrapy is touched beside its documented interface, and its errors mended."""
