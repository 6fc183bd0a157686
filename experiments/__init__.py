"""The studies: their tables, their profiles, and the function that trains one trial."""
