"""Settings of the project; small numbers, so that requests wait in the frontier."""

SPIDER_MODULES = ["equiv.spiders"]
FEED_EXPORT_ENCODING = "utf-8"
LOG_LEVEL = "INFO"
CONCURRENT_REQUESTS = 4
CONCURRENT_REQUESTS_PER_DOMAIN = 2
DOWNLOAD_DELAY = 0
ROBOTSTXT_OBEY = False
RETRY_TIMES = 2
DOWNLOAD_TIMEOUT = 900
DOWNLOADER_MIDDLEWARES = {"equiv.middlewares.Marks": 960}
# The last to see what a callback gives, as it comes out of it.
SPIDER_MIDDLEWARES = {"equiv.stages.CallbackStage": 9000}
ITEM_PIPELINES = {"equiv.stages.PipelineStage": 1}
EXTENSIONS = {"equiv.stages.IdleStage": 1}
