"""The training loop, optimisers, checkpoints and processes of one trial."""
