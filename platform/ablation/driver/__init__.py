"""What runs beside the person: the queue, attempts, Tune, display, estimate."""
