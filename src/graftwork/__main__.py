"""`python -m graftwork`: the same as the command `graftwork`."""

import sys

from graftwork.cli import main

if __name__ == "__main__":
    sys.exit(main())
