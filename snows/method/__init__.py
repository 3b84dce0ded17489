"""The paper, and what goes past it."""
