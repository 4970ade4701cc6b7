"""`python -m focusft`, for torchrun."""

import sys

from focusft.cli import main

sys.exit(main())
