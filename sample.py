"""``python sample.py``: the same as ``iresflow sample``."""

import sys

from iresflow.cli import main

if __name__ == "__main__":
    sys.exit(main(["sample", *sys.argv[1:]]))
