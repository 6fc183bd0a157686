"""Read-only views of the results store."""
