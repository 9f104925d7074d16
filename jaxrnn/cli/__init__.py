"""The command `jaxrnn`."""
