"""`medrm merge`: an adapter in the weights of its base, as a checkpoint that transformers loads.

The sum of a weight and what LoRA adds to it is computed in fp32 and rounded once to the precision
that is written. What was quantised in training becomes plain weights of the same values first. The
merged model is loaded from what was written, and scores synthetic cases beside the adapter; the
largest difference is told.
"""

from __future__ import annotations

import dataclasses
import gc
import logging
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from peft import PeftModel

from medrm.errors import AdapterError, ConfigError
from medrm.hub.probes import exact_responses
from medrm.models.adapter import load_adapter, save_adapter
from medrm.models.adapter_config import AdapterConfig, read_adapter_config
from medrm.models.adapter_files import MEDRM_FILE
from medrm.models.base_model import default_device
from medrm.models.families import family_of
from medrm.output_folder import new_folder
from medrm.pipeline.requests import MergeRequest
from medrm.scorer.collator import Collator
from medrm.scorer.noise_rows import NoiseRows
from medrm.scorer.open import LoadedModel
from medrm.scorer.specs import saved_folder

logger = logging.getLogger(__name__)

EXPORT_FILE = "export.json"
"""What a folder of `medrm export` was made from, and for what."""

MARKS = (MEDRM_FILE, EXPORT_FILE)
"""By which an output of these commands is known."""

_SEEDS = range(4)
"""Of the synthetic cases; each seed gives three answers."""

_FP32_DIFFERENCE = 1e-3
"""The largest difference that is rounding where all is fp32, in the scores' deviations."""

_COARSE_DIFFERENCE = 0.5
"""The same where weights are or were coarser."""


class ScoreDifference(NamedTuple):
    """How far two models are apart on synthetic answers.

    Attributes:
        scores: how many were compared.
        deviation: their standard deviation.
        largest: absolute difference.
    """

    scores: int
    deviation: float
    largest: float

    def __str__(self) -> str:
        """Says so in words."""
        return (
            f"{self.scores} scores of synthetic answers (standard deviation {self.deviation:.2g}) "
            f"differ by at most {self.largest:.1e}"
        )


def merge_adapter(request: MergeRequest) -> None:
    """Writes a saved model as a whole checkpoint with its contract and its head.

    Raises:
        AdapterError: it is not what its contract says, or the merged model scores otherwise.
        ConfigError: it cannot be merged, or the output cannot be written.
    """
    folder = saved_folder(request.model, request.revision)
    check_mergeable(folder)
    overwrite = request.overwrite_output_dir
    with new_folder(request.output, folder, MARKS, overwrite=overwrite) as draft:
        difference = write_merged(folder, draft, request)
    logger.info("%s\n%s", request.output, difference)


def check_mergeable(folder: Path) -> AdapterConfig:
    """Returns the contract of a saved model that can be merged.

    Raises:
        ConfigError: it is whole already, or its rewards need base and adapter apart.
    """
    contract = read_adapter_config(folder)
    if contract.trained == "full":
        raise ConfigError(
            f"{folder} holds whole weights, there is nothing to merge. Use it as it is."
        )
    if contract.readout == "implicit_reward":
        raise ConfigError(
            f"{folder} scores by how the adapter changes the likelihood of an answer, which needs "
            "the base beside it. Use the adapter as it is (medrm.load, medrm score)."
        )
    return contract


def write_merged(folder: Path, draft: Path, request: MergeRequest) -> ScoreDifference:
    """Writes a merged model and returns how far its scores are from the adapter's.

    Args:
        folder: of the saved model.
        draft: folder to write.
        request: whose `dtype` and `base` count.

    Raises:
        AdapterError: the merged model scores otherwise.
    """
    before = probe_scores(LoadedModel(*load_adapter(folder, default_device(), base=request.base)))
    loaded = merged_model(folder, request)
    save_adapter(draft, *loaded[:2], cast(AdapterConfig, loaded.contract))
    del loaded
    gc.collect()
    merged = LoadedModel(*load_adapter(draft, default_device()))
    return compare_scores(before, merged, read_adapter_config(folder))


def merged_model(folder: Path, request: MergeRequest) -> LoadedModel:
    """Returns a saved model whose adapter is in its weights, and the contract of the whole.

    Args:
        folder: of the saved model; one of whole weights stays as it is.
        request: whose `dtype` and `base` count.

    Raises:
        AdapterError: a merged weight is no number.
    """
    model, processor, contract = load_adapter(folder, base=request.base, dequantise=True)
    precision = getattr(torch, contract.dtype if request.dtype == "auto" else request.dtype)
    if precision == torch.float32:
        model = model.to(precision)
    if isinstance(model, PeftModel):
        # Its "safe" merge would round what is added before the sum, and so twice.
        model = cast(Any, model).merge_and_unload()
    model = model.to(precision)
    broken = [name for name, weight in model.named_parameters() if not weight.isfinite().all()]
    if broken:
        raise AdapterError(
            f"{folder} cannot be merged in {model.dtype}: {broken[0]} would hold what is no "
            "number. Give --dtype float32."
        )
    merged_contract = dataclasses.replace(
        contract,
        trained="full",
        quantisation=None,
        dtype=cast(Any, str(model.dtype).removeprefix("torch.")),
    )
    return LoadedModel(model, processor, merged_contract)


def probe_scores(loaded: LoadedModel) -> np.ndarray:
    """Returns what a model says of synthetic answers: rewards, of a judge their likelihoods."""
    contract = cast(AdapterConfig, loaded.contract)
    images = family_of(loaded.model.config).parts.takes_images
    collator = Collator(loaded.processor, contract.reward_template)
    cases = [case for seed in _SEEDS for case in NoiseRows(collator, images, seed).cases]
    responses = exact_responses(
        loaded, contract.readout, contract.dimensions, cases, deterministic=False
    )
    rewards = [response.rewards or {} for response in responses]
    return np.array([number for case in rewards for row in case.values() for number in row])


def compare_scores(
    before: np.ndarray, loaded: LoadedModel, source: AdapterConfig
) -> ScoreDifference:
    """Returns how far a merged model is from the one it was made from.

    Args:
        before: scores of that one, as `probe_scores` gives them.
        loaded: the merged model.
        source: contract of the one it was made from.

    Raises:
        AdapterError: farther than by rounding.
    """
    after = probe_scores(loaded)
    deviation = float(before.std())
    largest = float(np.abs(after - before).max()) if before.shape == after.shape else np.inf
    exact = (source.dtype, loaded.model.dtype) == ("float32", torch.float32)
    limit = _FP32_DIFFERENCE if exact and source.quantisation is None else _COARSE_DIFFERENCE
    difference = ScoreDifference(len(before), deviation, largest)
    if not largest <= limit * max(deviation, 1e-3):
        raise AdapterError(
            f"The merged model does not score as the adapter: {difference}. Nothing was written; "
            "report this with the adapter's medrm.json."
        )
    return difference
