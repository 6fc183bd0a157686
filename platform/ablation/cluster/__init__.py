"""Ray: starting it, connecting to it, checking its nodes."""
