"""Rows that are votes in medrm's own form: checked one by one, their images copied."""

from __future__ import annotations

from medrm.exchange.imported import Imported, Opened


def is_plain_votes(opened: Opened) -> bool:
    """Returns whether rows hold votes as `votes.jsonl` does."""
    return opened.mapping is None and {"case_id", "votes"} <= {*opened.columns}


def read_plain_votes(opened: Opened) -> Imported:
    """Returns the lines as they stand; the writer lists what is wrong with them."""
    return Imported(iter(opened.records))
