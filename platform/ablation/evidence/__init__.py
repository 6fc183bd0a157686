"""What a number rests on: code, versions, machines, data; and whether it still holds."""
