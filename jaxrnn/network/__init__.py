"""What the network is and computes."""
