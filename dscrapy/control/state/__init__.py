"""What the master remembers, and how events change it."""
