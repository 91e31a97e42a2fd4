"""Settings of master, worker and client, and job files: read strictly."""
