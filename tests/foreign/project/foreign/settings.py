"""Settings of a project whose spiders are Scrapy's own test spiders."""

BOT_NAME = "foreign"
SPIDER_MODULES = ["foreign.spiders"]
EXTENSIONS = {"foreign.recorder.Recorder": 0}
SPIDER_MIDDLEWARES = {"foreign.spread.Spread": 950}
# In a process of its own these would collide with whatever else runs here.
TELNETCONSOLE_ENABLED = False
REMOTE_CONTROL_ENABLED = False
