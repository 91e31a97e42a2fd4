"""A crawl process's side of its worker: link, lifeline, marks, a caller's stdin."""
