"""The phantom set: drawn on first use, then read as the votes file that it is."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from medrm.assets import cache_dir
from medrm.data.readers.votes_jsonl import VOTES_FILE, read_votes_file
from medrm.data.sources import Description, Source, read_about
from medrm.data.store.cache import fill_cache_folder


def open_phantom(description: Description) -> Source:
    """Returns the drawn set of `description.cases` cases and `description.seed`."""
    folder = phantom_folder(description.cases, description.seed)
    votes = folder / VOTES_FILE
    return Source([votes], partial(read_votes_file, votes), folder.name, read_about(folder))


def phantom_folder(cases: int, seed: int) -> Path:
    """Returns the folder of a phantom set, drawn once and kept in the cache.

    Raises:
        ConfigError: the cache cannot be written.
    """
    from medrm.data.phantom.layouts import VERSION, write_phantom

    folder = cache_dir() / "phantom" / f"version{VERSION}-seed{seed}-cases{cases}"
    if not folder.is_dir():
        fill_cache_folder(folder, lambda draft: write_phantom(draft, cases=cases, seed=seed))
    return folder
