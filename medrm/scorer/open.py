"""`medrm.load`: a saved reward model or judge from a folder or the hub, ready to score."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)
from peft import PeftModel
from transformers import PreTrainedModel, ProcessorMixin

from medrm.errors import AdapterError, ConfigError, first_line
from medrm.models.adapter_config import MEDRM_FILE, AdapterConfig
from medrm.models.save_load import load_adapter
from medrm.scorer.readouts.constrained_json import ConstrainedJson
from medrm.scorer.readouts.generative_judge import Judge
from medrm.scorer.readouts.implicit_reward import ImplicitReward
from medrm.scorer.readouts.reward import RewardModel
from medrm.scorer.runner import BATCH_ROWS
from medrm.scorer.specs import local_judge

Saved = RewardModel | ImplicitReward | Judge | ConstrainedJson
"""What `load` gives."""

_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
"""What is fetched from the hub: weights, settings, tokenizer; never pickles or code."""


def load(
    path_or_repo: str | Path,
    revision: str | None = None,
    device: torch.device | str | None = None,
    batch_rows: int = BATCH_ROWS,
    attn_implementation: str | None = None,
    readout: str | None = None,
    shared_prefix: Literal["on", "off"] = "on",
) -> Saved:
    """Loads a saved reward model or judge; nothing is ever made up for a missing part.

    Args:
        path_or_repo: an adapter folder, or the id of a hub repository.
        revision: branch, tag or commit of the repository.
        device: where it runs; None: the GPU if there is one, else the CPU.
        batch_rows: most rows (case and answer) computed at once.
        attn_implementation: attention of transformers; None: as trained, for the same scores.
        readout: how a judge's verdict is read; None: as it was saved.
        shared_prefix: "off" reads each answer's row by itself, for checking.

    Raises:
        AdapterError: not found, not a model that medrm saved, or not what its contract says.
        ConfigError: the base model cannot be loaded, or not be read so.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model, processor, contract = load_adapter(
        folder_of(path_or_repo, revision),
        device,
        attn_implementation=attn_implementation,
        shared_prefix=shared_prefix,
    )
    return scorer_of(model, processor, contract, batch_rows, readout)


def scorer_of(
    model: PreTrainedModel | PeftModel,
    processor: ProcessorMixin,
    contract: AdapterConfig,
    batch_rows: int = BATCH_ROWS,
    readout: str | None = None,
) -> Saved:
    """Returns what scores with a model that `load_adapter` has loaded; see `load`.

    Raises:
        AdapterError: the contract of a judge has no prompt.
        ConfigError: the model cannot be read so.
    """
    if contract.judge is None and readout not in (None, contract.readout):
        raise ConfigError(
            f"The model is scored by {contract.readout!r}; readout {readout!r} is for judges. "
            "Leave it out."
        )
    if contract.readout == "reward":
        return RewardModel(model, processor, contract, batch_rows)
    if contract.readout == "implicit_reward":
        return ImplicitReward(model, processor, contract, batch_rows)
    if contract.judge is None:
        raise AdapterError(
            f"{MEDRM_FILE} names the readout {contract.readout!r} but no judge's prompt. Save "
            "the adapter again."
        )
    return local_judge(
        model,
        processor,
        contract.judge,
        readout or contract.readout,
        contract.dimensions,
        batch_rows,
        contract,
    )


def has_contract(path_or_repo: str | Path, revision: str | None = None) -> bool:
    """Returns whether a folder or hub repository is a model that medrm saved.

    A repository that cannot be asked is taken for none; loading it as a base says why it failed.
    """
    if Path(path_or_repo).is_dir():
        return (Path(path_or_repo) / MEDRM_FILE).is_file()
    try:
        hf_hub_download(str(path_or_repo), MEDRM_FILE, revision=revision)
    except (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        EntryNotFoundError,
        OSError,
    ):
        return False
    return True


def folder_of(path_or_repo: str | Path, revision: str | None = None) -> Path:
    """Returns the adapter folder, downloaded where it is a hub repository.

    Raises:
        AdapterError: not found, or not a model that medrm saved.
    """
    folder = Path(path_or_repo)
    if not folder.is_dir():
        folder = _download(str(path_or_repo), revision)
    if not (folder / MEDRM_FILE).is_file():
        raise AdapterError(
            f"{str(path_or_repo)!r} is no saved model of medrm: it has no {MEDRM_FILE}. A base "
            "model has neither head nor judge's prompt; train one with recipes/train_rm.py, whose "
            "run also measures the base, or measure it with medrm evaluate. Give the adapter "
            "folder of a run, such as RUN/adapter."
        )
    return folder


def _download(repo: str, revision: str | None) -> Path:
    """Returns the local snapshot of a hub repository.

    Raises:
        AdapterError: there is no such folder or repository, or the hub cannot be reached.
    """
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise AdapterError(
            f"{repo!r} is neither a folder nor a hub repository that can be had: "
            f"{first_line(error)} Give an existing adapter folder, such as RUN/adapter, or "
            "ORG/NAME of a repository that is reachable or in the cache."
        ) from error
