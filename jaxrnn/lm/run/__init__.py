"""Runs: prepared, trained, saved and resumed."""
