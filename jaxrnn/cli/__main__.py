"""Entry point of `python -m jaxrnn.cli`."""

from jaxrnn.cli.main import main

if __name__ == "__main__":
    main()
