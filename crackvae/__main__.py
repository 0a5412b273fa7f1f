"""`python -m crackvae`."""

import sys

from crackvae.cli import main

sys.exit(main())
