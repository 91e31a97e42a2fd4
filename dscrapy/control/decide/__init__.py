"""What each command means, and what follows from a changed state: one topic a file."""
