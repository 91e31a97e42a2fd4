"""Real faults on real processes; ``make chaos`` ends with one table.

A row is one experiment: master, workers and crawl processes of its own, something
that goes wrong, and the items compared with those of plain ``scrapy crawl``. A row
that this machine does not allow is skipped with the reason, and counts for nothing.
"""
