"""The worker's trio shell: dials the master and runs crawl processes for it."""
