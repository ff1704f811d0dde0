"""``python -m xgem`` is the ``xgem`` command."""

import sys

from xgem.cli import main

if __name__ == "__main__":
    sys.exit(main())
