"""Assignment of ground truth to anchors, and losses."""
