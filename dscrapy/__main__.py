"""Entry of ``python -m dscrapy``."""

import sys

from dscrapy.cli import main

if __name__ == "__main__":
    sys.exit(main())
