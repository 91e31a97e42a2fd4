"""What pages gave, on its way to the master."""
