"""``crawl``: master, worker and client in one command."""
