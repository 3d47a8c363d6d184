"""What a parser read in a reply."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Outcome = Literal["A", "B", "tie"]
"""`A` is the answer that the judge was shown first."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """The verdict of one reply.

    Attributes:
        outcomes: every asked dimension to what the reply says; None: nothing was read.
        stage: the rule that read it; official: "json", "regex", "bracket" or "single"; strict:
            "json" or "letter"; None: no rule did.
        reason: why nothing, or not everything, was read.
        suspect: read by a rule of the released scorer that is known to misread.
    """

    outcomes: Mapping[str, Outcome | None]
    stage: str | None = None
    reason: str | None = None
    suspect: bool = False
