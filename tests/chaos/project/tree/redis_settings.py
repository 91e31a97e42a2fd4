"""The same, with what scrapy-redis asks for; its port comes with a run."""

from .settings import *  # noqa: F403 - the same settings and some more

SPIDER_MODULES = ["tree.redis_spiders"]
SCHEDULER = "scrapy_redis.scheduler.Scheduler"
DUPEFILTER_CLASS = "scrapy_redis.dupefilter.RFPDupeFilter"
# Keeps the queue when a process closes.
SCHEDULER_PERSIST = True
ITEM_PIPELINES = {"scrapy_redis.pipelines.RedisPipeline": 300}
REDIS_HOST = "127.0.0.1"
