"""The stages of one model: it is measured, trained, and measured again."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from medrm.config import Run
from medrm.evaluation.benchmark import Benchmark
from medrm.models.adapter_config import read_adapter_config
from medrm.pipeline import judge_stages as judges
from medrm.pipeline import reward_stages as rewards
from medrm.pipeline.context import RunContext
from medrm.pipeline.evaluate import refuse_trained_images
from medrm.pipeline.fit import train_adapter
from medrm.scorer.open import folder_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageResults:
    """What the stages of one model left beside `before` and `after`.

    Attributes:
        development: the base's readouts and their accuracy on the development cases, by which
            `before` was chosen; empty where there is one readout.
        controls: the evaluation folders that stand beside the headline.
    """

    development: dict[str, float]
    controls: list[str]


def check_start_is_blind(run: Run, benchmark: Benchmark) -> None:
    """Refuses to go on from an adapter that was trained on what is measured.

    Raises:
        DataError: names the cases whose images it has seen.
        AdapterError: it is not found.
    """
    if run.judge.init_adapter is not None:
        refuse_trained_images(read_adapter_config(folder_of(run.judge.init_adapter)), benchmark)


def run_stages(context: RunContext) -> StageResults:
    """Measures the base and its controls, trains the adapter, and measures it as it was saved."""
    measures = judges if context.judge_spec else rewards
    development = measures.before(context)
    controls = measures.controls_before(context)
    train_adapter(context)
    controls += measures.after(context)
    return StageResults(development, controls)
