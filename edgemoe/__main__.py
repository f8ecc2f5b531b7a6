"""`python -m edgemoe` is `edgemoe`."""

from .cli import main

if __name__ == "__main__":
    main()
