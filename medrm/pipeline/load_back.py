"""The load-back check: a saved adapter, loaded anew, scores as the model that was trained.

Some cases are scored deterministically by the model in memory and by the one that was loaded, and
no bit may differ: a rounding would hide a weight that was not saved, or saved in less precision. A
reward is compared where the run trains one; of a judge, how likely it finds each answer, which all
its trained layers decide. Where the comparison is not possible, the log says why.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import Trainer

from medrm.errors import AdapterError, DeterminismError
from medrm.hub.probes import exact_responses
from medrm.models.adapter_config import AdapterConfig
from medrm.pipeline.context import RunContext
from medrm.schema import Response
from medrm.scorer.open import LoadedModel

logger = logging.getLogger(__name__)

_SCORED = 4
"""How many cases that can be scored are scored twice."""

_MOST_READ = 64
"""How many cases are read to find them: the first may be too long, or their images broken."""


def trained_scores(
    context: RunContext, trainer: Trainer, contract: AdapterConfig
) -> list[Response] | None:
    """Returns what the trained model says of some cases; None where it cannot be compared.

    Processes may hold parts of it, it may need an operation without a deterministic kernel, or
    none of the cases can be read.

    Args:
        context: of the run.
        trainer: that has trained; its model computes in its own precision afterwards, as a loaded
            one does.
        contract: that the model is saved with.
    """
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        _log_not_compared("DeepSpeed or FSDP may have parted the trained model")
        return None
    model: Any = trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
    model.requires_grad_(False).eval()
    responses = list[Response]()
    try:
        for response in _scores(context, LoadedModel(model, context.processor, contract)):
            responses.append(response)
            if [response.state for response in responses].count("ok") == _SCORED:
                break
    except DeterminismError as error:
        _log_not_compared(str(error))
        return None
    states = sorted({response.state for response in responses})
    if "ok" not in states:
        _log_not_compared(f"the first {len(responses)} cases are {' or '.join(states)}")
        return None
    return responses


def _log_not_compared(reason: str) -> None:
    logger.warning(
        "the trained model and the saved adapter are not compared bit by bit: %s", reason
    )


def check_load_back(
    context: RunContext,
    folder: Path,
    saved: LoadedModel,
    trained: Sequence[Response] | None,
) -> None:
    """Compares a loaded model with the one that was trained.

    Args:
        context: of the run.
        folder: where it was saved.
        saved: the adapter, loaded anew.
        trained: as `trained_scores` gives it.

    Raises:
        AdapterError: they differ in a bit; names the case.
    """
    if trained is None:
        return
    scored_anew = islice(_scores(context, saved), len(trained))
    for before, after in zip(trained, scored_anew, strict=True):
        if before != after:
            raise AdapterError(
                f"The saved adapter does not score as the trained model: case {before.case_id!r} "
                f"had {_said(before)} and has {_said(after)} after loading "
                f"{folder} anew. What the model needs was not saved, or not in "
                "its precision; do not publish it, and report this run with its run.json."
            )


def _said(response: Response) -> str:
    return str(response.state if response.rewards is None else dict(response.rewards))


def _scores(context: RunContext, loaded: LoadedModel) -> Iterator[Response]:
    """Yields the rewards of the first cases, or the likelihoods of their answers."""
    cases = context.splits.development if len(context.splits.development) else context.splits.train
    batch_rows = context.run.evaluation.evaluation_batch_rows
    dimensions = context.splits.dimensions
    return exact_responses(
        loaded, context.readout, dimensions, islice(cases, _MOST_READ), batch_rows
    )
