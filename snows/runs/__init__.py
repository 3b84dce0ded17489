"""A run is a folder: written here, and read."""
