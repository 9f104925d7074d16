"""Training: steps, loops, evaluation, several devices, and the diagnosis of non-finite steps."""
