"""Our components in Scrapy's places, and what they need of Scrapy's insides."""
