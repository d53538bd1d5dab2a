"""`python -m esrl` is the command line."""

import sys

from esrl.cli import main

sys.exit(main())
