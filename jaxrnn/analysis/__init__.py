"""What gradients and networks look like: costs, lags, gradient flow, every number of a pass."""
