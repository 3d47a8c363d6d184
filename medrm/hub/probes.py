"""Whether two copies of a saved model give the same rewards, bit for bit, on cases made here.

The cases are noise and a few words: nothing of anybody's data, the same everywhere. A reward is
compared where the model gives one; of a judge, how likely it finds each answer, which all its
trained layers decide.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from medrm.errors import DeterminismError
from medrm.models.adapter import load_adapter
from medrm.models.adapter_config import read_adapter_config
from medrm.models.base_model import default_device
from medrm.models.processor_files import reads_images
from medrm.models.reward_model import without_adapter
from medrm.readouts import writes_rewards
from medrm.schema import Case, Response
from medrm.scorer.noise_rows import noise_image
from medrm.scorer.open import LoadedModel, ScorerOptions, open_scorer
from medrm.scorer.runner import BATCH_ROWS

_QUESTION = "Which answer describes the image?"

_ANSWERS = (
    ("It is grey noise.", "Nothing is abnormal, as far as it can be told."),
    ("There is a fracture.", "No fracture is visible", "It cannot be told!"),
    ("Yes", "No"),
)

_SIZES = ((112, 112), (168, 84), (84, 140))
"""Width and height of each case's image."""

_SEED = 8_202_611
"""Of the noise; no other rows are made from it."""


def probe_cases(images: bool) -> tuple[Case, ...]:
    """Returns the cases that saved models are compared on: the same on every machine.

    Args:
        images: whether each has an image.
    """
    return tuple(
        Case(
            f"probe-{number}",
            (noise_image(size, _SEED + number),) if images else (),
            _QUESTION,
            answers,
        )
        for number, (size, answers) in enumerate(zip(_SIZES, _ANSWERS, strict=True))
    )


def probe(folder: Path, base: str | None = None) -> list[Response]:
    """Returns what a saved model says of the probe cases; the model is loaded and let go.

    Args:
        folder: of the saved model.
        base: where its base lies; None: it is looked for.

    Raises:
        AdapterError: it is not as it was saved, or the base is another one.
        ConfigError: the base cannot be loaded.
    """
    contract = read_adapter_config(folder)
    read = (contract.readout, contract.dimensions)
    device = default_device()
    cases = probe_cases(reads_images(folder))
    loaded = LoadedModel(*load_adapter(folder, device, base=base))
    try:
        responses = list(exact_responses(loaded, *read, cases))
    except DeterminismError:  # an operation has no such kernel; the batches are the same ones
        responses = list(exact_responses(loaded, *read, cases, deterministic=False))
    del loaded
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    return responses


def exact_responses(
    loaded: LoadedModel,
    readout: str,
    dimensions: Sequence[str],
    cases: Iterable[Case],
    batch_rows: int = BATCH_ROWS,
    deterministic: bool = True,
) -> Iterator[Response]:
    """Yields the rewards of cases, or the likelihoods of their answers, for a comparison of bits.

    Args:
        loaded: the model.
        readout: how it is read.
        dimensions: what it scores.
        cases: to be scored.
        batch_rows: most rows computed at once.
        deterministic: whether nothing else that is scored may change a bit.

    Raises:
        DeterminismError: an operation of the model has no deterministic kernel.
    """
    if not writes_rewards(readout):
        loaded = LoadedModel(without_adapter(loaded.model), loaded.processor)
        readout = "likelihood"
    options = ScorerOptions(batch_rows=batch_rows, deterministic=deterministic)
    return open_scorer(loaded, readout, dimensions=dimensions, options=options).respond(cases)
