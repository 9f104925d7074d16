"""Search for the bug that causes a wrong gradient."""
