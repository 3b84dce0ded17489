"""The commands of `python -m snows`."""
