"""The version of this code, which may be another than the one that was installed from it."""

from __future__ import annotations

__version__ = "0.2.0"
