"""Training runs: preparing, training, saving and resuming them."""
