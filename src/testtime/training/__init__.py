"""Training: checkpoints, and the loop that is resumed exactly."""
