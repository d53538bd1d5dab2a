"""`python -m esrl` is the command line."""

import sys

from esrl.cli.main import main

sys.exit(main())
