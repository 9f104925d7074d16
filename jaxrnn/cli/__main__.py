"""Entry point of `python -m jaxrnn.cli`."""

from jaxrnn_command import main

if __name__ == "__main__":
    main()
