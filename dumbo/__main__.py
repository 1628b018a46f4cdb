"""``python -m dumbo``: the same as the installed command ``dumbo``."""

import sys

from dumbo.cli import command

if __name__ == "__main__":
    sys.exit(command())
