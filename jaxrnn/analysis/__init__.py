"""Analysis of rules and gradients: comparison, cost, time lags, gradient flow, walkthrough."""
