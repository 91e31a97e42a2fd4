"""Settings of the test project."""

SPIDER_MODULES = ["testsite.spiders"]
ITEM_PIPELINES = {"testsite.pipelines.Rounding": 300}
FEED_EXPORT_ENCODING = "utf-8"
LOG_LEVEL = "INFO"
CONCURRENT_REQUESTS_PER_DOMAIN = 16
# What the site answers slowly or wrongly is not worth a second try in tests.
RETRY_ENABLED = False
