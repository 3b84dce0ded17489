"""Lessons: one idea each, one thing to move, every number computed by the engine while one watches."""
