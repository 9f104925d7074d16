"""The parts from which gradient rules are built."""
