"""Benchmarks of the detector against the implementations people would use instead; see README.md."""
