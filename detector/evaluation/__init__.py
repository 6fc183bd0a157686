"""Detections from outputs, and COCO metrics of them."""
