"""What to say of a network."""
