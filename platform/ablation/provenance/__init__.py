"""What a number rests on, and whether that still holds."""
