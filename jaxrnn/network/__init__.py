"""The network: its description, parameters, forward pass, loss and input checks."""
