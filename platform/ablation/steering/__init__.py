"""What people do beside a run: look at it, steer it, and tidy up after it."""
