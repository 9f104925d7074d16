"""Train steps, on one device or many."""
