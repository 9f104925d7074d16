"""What gradient rules are made of."""
