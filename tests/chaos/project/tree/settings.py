"""Scrapy's defaults but for these; what the site needs to know comes with a run."""

SPIDER_MODULES = ["tree.spiders"]
LOG_LEVEL = "INFO"
TELNETCONSOLE_ENABLED = False
# It listens on ports of its own, which processes beside each other do not need.
REMOTE_CONTROL_ENABLED = False
