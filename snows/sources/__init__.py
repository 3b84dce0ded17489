"""What comes in: networks, checkpoints, images."""
