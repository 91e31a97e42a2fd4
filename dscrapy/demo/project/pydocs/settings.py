"""Settings of the demonstration's project."""

BOT_NAME = "pydocs"
SPIDER_MODULES = ["pydocs.spiders"]

# pydoc answers one request at a time, and the site is this machine's own.
CONCURRENT_REQUESTS = 4
CONCURRENT_REQUESTS_PER_DOMAIN = 4
DOWNLOAD_DELAY = 0
ROBOTSTXT_OBEY = False

# Several crawls run side by side on one machine; nobody logs into them.
TELNETCONSOLE_ENABLED = False
FEED_EXPORT_ENCODING = "utf-8"
