"""The demonstration: a real site of this machine, crawled by a master and workers."""
