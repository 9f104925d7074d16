"""The command-line interface `jaxrnn`."""
