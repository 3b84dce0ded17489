"""The commands of `python -m snows`. torch and timm take seconds to import: only commands that compute import them, inside."""
