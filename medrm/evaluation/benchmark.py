"""A benchmark: labelled cases with a name, a digest and the numbers others published on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from medrm.assets import asset, asset_names
from medrm.errors import ConfigError, nearest
from medrm.schema import DIMENSIONS, Case

if TYPE_CHECKING:
    from medrm.data.load import CaseSet


@dataclass(frozen=True, slots=True)
class Published:
    """A number somebody else reported on the benchmark, with its source."""

    model: str
    accuracy: str
    source: str


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Labelled cases to be judged; none of them ever leaves the denominator.

    `digest` covers ids, questions, answers, labels and images; `ceiling` holds the accuracy that is
    reachable on a dimension, where that is known.
    """

    name: str
    revision: str | None
    digest: str
    cases: tuple[Case, ...]
    dimensions: tuple[str, ...]
    ceiling: Mapping[str, float] = field(default_factory=dict)
    synthetic: bool = False
    published: tuple[Published, ...] = ()

    @property
    def clusters(self) -> int:
        """How many independent groups of cases there are."""
        return len({case.cluster or case.case_id for case in self.cases})
