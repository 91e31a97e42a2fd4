"""One connection at a time, in trio: what master, worker and clients share."""
