"""Search for the bug that made a wrong gradient."""
