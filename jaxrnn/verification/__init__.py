"""Compare a gradient with a reference, and name its bug if it is wrong."""
