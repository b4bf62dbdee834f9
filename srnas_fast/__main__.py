"""``python -m srnas_fast``: the same as the command ``srnas-fast``."""

import sys

from srnas_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
