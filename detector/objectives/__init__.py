"""What a training aims at: assignment of ground truth to anchors, and losses."""
