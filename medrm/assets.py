"""Finds the files shipped with medrm: recipes, data sets, benchmarks, the phantom base."""

from __future__ import annotations

import os
from pathlib import Path

from medrm.errors import ConfigError

PHANTOM_BASE = "phantom-base"
"""The name of the base model shipped in the wheel, accepted wherever a model is."""

_PACKAGE = Path(__file__).resolve().parent


def asset(relative: str) -> Path:
    """Returns the path of a shipped file or folder, such as `data/phantom/dataset.yaml`.

    In a checkout that is the file itself, in an installed wheel its copy under `medrm/_builtin`.

    Raises:
        ConfigError: nothing of that name is shipped.
    """
    candidates = (_PACKAGE.parent / relative, _PACKAGE / "_builtin" / relative)
    for candidate in candidates:
        if candidate.exists():
            return candidate
    raise ConfigError(f"{relative!r} is not shipped with medrm; looked at {candidates[0]}.")


def asset_names(folder: str, pattern: str) -> list[str]:
    """Returns the sorted names (without suffix) of the shipped entries of `folder`."""
    return sorted(path.stem for path in asset(folder).glob(pattern))


def cache_dir() -> Path:
    """Returns the folder for generated data: `$MEDRM_CACHE`, else `~/.cache/medrm`."""
    return Path(os.environ.get("MEDRM_CACHE") or Path.home() / ".cache" / "medrm")
