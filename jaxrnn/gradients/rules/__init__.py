"""The gradient rules, one per file."""
