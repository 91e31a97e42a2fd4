"""What a project's code says about how it will do with several processes."""
