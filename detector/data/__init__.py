"""Data sets on disk to batches of images and boxes."""
