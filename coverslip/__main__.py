"""`python -m coverslip` is the same as `coverslip`."""

import sys

from coverslip.cli import main

sys.exit(main())
