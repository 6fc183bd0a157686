"""What runs trials: which start when and where, what their processes do, and what is shown meanwhile."""
