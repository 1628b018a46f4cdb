"""``python -m dumbo``: the same as the installed command ``dumbo``."""

import sys

from dumbo.cli import main

if __name__ == "__main__":
    sys.exit(main())
