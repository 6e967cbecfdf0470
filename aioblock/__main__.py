"""`python -m aioblock`: the program `aioblock`."""

import sys

from aioblock.tools.cli import main

if __name__ == "__main__":
    sys.exit(main())
