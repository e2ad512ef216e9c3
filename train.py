"""``python train.py``: the same as ``iresflow train``."""

import sys

from iresflow.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
