"""`medrm data agreement`: how far the readers of a set agree, to the terminal and to a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from medrm.config.option import as_in, option
from medrm.config.options import DataOptions
from medrm.data.case_set import read_set
from medrm.data.labels import Aggregation
from medrm.errors import DataError
from medrm.evaluation.reader_agreement import reader_agreement
from medrm.evaluation.report import json_bytes
from medrm.evaluation.tables.reader_tables import agreement_tables
from medrm.evaluation.tables.terminal import print_contents
from medrm.files import check_outputs, write_output
from medrm.pipeline.label_rules import label_rules


@dataclass(frozen=True)
class AgreementRequest:
    """What one `medrm data agreement` is asked to do.

    Attributes:
        source: the set, as `case_set.read_set` takes it.
    """

    source: str
    output: Path | None = option(None, "JSON file to write, with all numbers")
    image_root: Path | None = option(
        None, "folder in which images are looked for first (default: that of the set)"
    )
    image_conversion: str | None = as_in(DataOptions, "image_conversion")
    vote_ties: Literal["keep", "split", "drop"] = as_in(DataOptions, "vote_ties")
    vote_strength: Literal["share", "weight", "ignore"] = as_in(DataOptions, "vote_strength")
    min_vote_seconds: float = as_in(DataOptions, "min_vote_seconds")
    annotator_weights: str | None = as_in(DataOptions, "annotator_weights")

    @property
    def aggregation(self) -> Aggregation:
        """Agreement is that of votes, whatever becomes of them."""
        return "shares"


def measure_agreement(request: AgreementRequest) -> None:
    """Prints and writes the agreement of a set's readers.

    Raises:
        DataError: the set cannot be read, or no case has two readers.
        ConfigError: rules or paths that are not accepted.
    """
    check_outputs({"--output": request.output}, folders=False)
    rules = label_rules(request)
    case_set = read_set(
        request.source,
        rules,
        image_root=request.image_root,
        image_conversion=request.image_conversion,
    )
    measured = reader_agreement(case_set, rules)
    if not any(of_dimension["units"] for of_dimension in measured["dimensions"].values()):
        raise DataError(
            f"No case of {request.source} was judged by two readers on one dimension, so there is "
            "no agreement to measure. Give votes that name each reader as their `annotator`."
        )
    if request.output is not None:
        write_output(request.output, [json_bytes(measured)])
    print_contents(agreement_tables(measured), Console(), fold=True)
