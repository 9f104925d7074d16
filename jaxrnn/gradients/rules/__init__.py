"""The gradient rules, one in each file."""
