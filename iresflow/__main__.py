"""``python -m iresflow``."""

import sys

from iresflow.cli import main

sys.exit(main())
