"""Reading the verdict in a judge's reply: `parse_verdict`. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from medrm.errors import ConfigError, nearest
from medrm.parsers import official, strict
from medrm.parsers.parsed import Parsed
from medrm.schema import DIMENSIONS

Parser = Literal["official", "strict"]
"""The released scorer's rules, misreadings included, or our own."""

PARSER_VERSION = 3
"""Counted up when a parser reads some text otherwise than before."""

PARSERS = {"official": official.parse, "strict": strict.parse}


def parse_verdict(text: str, parser: Parser, dimensions: Sequence[str] = DIMENSIONS) -> Parsed:
    """Reads which answer a reply prefers on every dimension.

    Both parsers are total: any text is read in time linear in its length.

    >>> reply = 'Answer B is complete. {"accuracy": "B", "overall": "tie"}'
    >>> dict(parse_verdict(reply, "strict", ["accuracy", "overall"]).outcomes)
    {'accuracy': 'B', 'overall': 'tie'}

    The released scorer wants all of its six dimensions, and drops the reply:

    >>> parse_verdict(reply, "official").reason
    'dropped although 1 of 6 dimensions readable: not relevance, ...'

    Args:
        text: the reply of a judge, as it was written.
        parser: `official`: the released scorer's rules, under which a reply counts on all of its
            six dimensions or on none. `strict`: what one JSON object says, and nothing else.
        dimensions: the names that were asked for.

    Raises:
        ConfigError: no parser has that name.
    """
    if parser not in PARSERS:
        raise ConfigError(
            f"parser: unknown name {parser!r}; accepted: {', '.join(PARSERS)}."
            f"{nearest(parser, PARSERS)} Choose one of them."
        )
    return PARSERS[parser](text, dimensions)
