"""The crawl process: stock Scrapy on asyncio with our components, never trio.

A worker starts ``python -P -m dscrapy.crawl LINK_FD LIFELINE_FD MARKS_FD`` in the
project's folder. This package imports ``proto`` and the base only; ``export`` alone is
also called outside of a crawl process, by the command line.
"""
