"""Boxes and anchors: pure functions on coordinates."""
