"""Compare a gradient with a reference, and name the bug if it is wrong."""
