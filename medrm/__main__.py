"""`python -m medrm`: the same as `medrm`."""

from __future__ import annotations

from medrm.cli import command

if __name__ == "__main__":
    command()
