"""`python -m medrm`: the same as `medrm`."""

from __future__ import annotations

import sys

from medrm.cli import main

if __name__ == "__main__":
    sys.exit(main())
