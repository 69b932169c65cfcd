"""`python -m cli` is `hsm-endorser`."""

import sys

from cli.main import main

if __name__ == "__main__":  # signing processes import this module again
    sys.exit(main())
