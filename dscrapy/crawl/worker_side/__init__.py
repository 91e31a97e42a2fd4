"""What a crawl process has of its worker: link, lifeline, marks, a caller's stdin."""
