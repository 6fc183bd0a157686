"""Provenance: the code, packages and data behind a result, and whether they have changed since."""
