"""One script per question; each prints machine, versions, command and result."""
