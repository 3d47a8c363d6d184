"""The self-check of a model that is loaded: proven once, then read from the cache, and applied.

A proof holds for the weights, the code and the device that run them, the precision and the
processor; their digest names its file below `checks/` in the cache folder. A file that cannot be
read is ignored, and a refused model leaves none.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast, get_type_hints

import torch
import transformers
from peft import PeftModel
from transformers import PreTrainedModel, ProcessorMixin
from transformers.utils.hub import TRANSFORMERS_DYNAMIC_MODULE_NAME

from medrm.chat_template import RewardTemplate
from medrm.failures import naming
from medrm.files import cache_dir, fits
from medrm.integrity import read_record, write_record
from medrm.models.adapter import saved_identity
from medrm.models.adapter_config import read_adapter_config
from medrm.models.families import family_of
from medrm.models.footprint import amount
from medrm.models.prefix_sharing.attention import disable_prefix_sharing, shares_prefix
from medrm.models.prefix_sharing.kv_cache import (
    caches_answers,
    disable_shared_cache,
    shares_cache,
)
from medrm.models.reward_model import without_adapter
from medrm.scorer.self_check import Proof, prove
from medrm.version import __version__

logger = logging.getLogger(__name__)

_VERSION = 1
"""Counted up when what is proven changes."""

_told: set[str] = set()
"""Proofs that this process has told of."""


def check_loaded(
    model: PreTrainedModel | PeftModel,
    processor: ProcessorMixin,
    weights: str,
    template: RewardTemplate = "generation_prompt",
    images: bool = True,
    tell: bool = True,
) -> Proof:
    """Proves a model, or reads that it was proven, and switches off what it was not proven to do.

    Args:
        model: as it was loaded; its attention and its cache are changed.
        processor: of the model.
        weights: which ones they are, such as `BaseReference.identity`.
        template: what follows the answer before the reward is read.
        images: whether the data has images.
        tell: whether the log says what the model is and what was proven, once for each process.

    Raises:
        ConfigError: as `prove` does.
    """
    base = without_adapter(model)
    subject = [weights, template, images, isinstance(model, PeftModel)]
    path = cache_dir() / "checks" / f"{_key(base, processor, subject)}.json"
    proof = _read(path)
    if proof is None:
        proof = prove(model, processor, template, images)
        _write(path, proof)
    if proof.sharing_problem is not None and shares_prefix(base):
        logger.info("the answers of a case run as separate rows: %s", proof.sharing_problem)
        disable_prefix_sharing(base)
    if proof.cache_problem is not None and (shares_cache(base) or caches_answers(base)):
        logger.info("prompts are read whole: %s", proof.cache_problem)
        disable_shared_cache(base)
    if tell and path.name not in _told and os.environ.get("RANK", "0") == "0":
        _told.add(path.name)
        logger.info("%s", "\n  ".join(["model:", *_described(base), *proof.lines]))
    return proof


def _described(model: PreTrainedModel) -> list[str]:
    """Returns what a model is, as lines for people."""
    family = family_of(model.config)
    parts, dtype = family.parts, str(model.dtype).removeprefix("torch.")
    tower = "none" if parts.vision is None else parts.vision
    return [
        f"{family.name} ({type(model).__name__}), {amount(model.num_parameters())} parameters, "
        f"{dtype} on {model.device.type}; decoder {parts.decoder}, vision tower {tower}",
    ]


def proven_weights(folder: Path) -> str:
    """Returns the weights whose proof holds for a saved model: an adapter leaves it as it is."""
    contract = read_adapter_config(folder)
    return saved_identity(folder) if contract.trained == "full" else contract.base.identity


def _key(model: PreTrainedModel, processor: ProcessorMixin, subject: list[Any]) -> str:
    libraries = [__version__, torch.__version__, transformers.__version__, version("peft")]
    device = model.device
    runtime = [
        str(model.dtype),
        torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        torch.get_float32_matmul_precision(),
        [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32],
        model.config._attn_implementation,
        model.config.to_json_string(use_diff=False),
        [shares_prefix(model), shares_cache(model), caches_answers(model)],
    ]
    code = _own_code_digest([*model.modules(), processor, *vars(processor).values()])
    key_fields = [_VERSION, *subject, libraries, runtime, code, processor_digest(processor)]
    return hashlib.sha256(json.dumps(key_fields).encode()).hexdigest()


def _own_code_digest(objects: Iterable[object]) -> str:
    """Returns a digest of the Python files that objects take from checkpoints' folders."""
    modules = {cls.__module__ for value in objects for cls in type(value).__mro__}
    remote = (name for name in modules if name.startswith(f"{TRANSFORMERS_DYNAMIC_MODULE_NAME}."))
    folders = {Path(str(sys.modules[name].__file__)).parent for name in remote}
    digest = hashlib.sha256()
    for path in sorted(path for folder in folders for path in folder.rglob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def processor_digest(processor: ProcessorMixin) -> str:
    """Returns a digest of a processor's files and of the library that runs it."""
    backend = getattr(cast(Any, processor).tokenizer, "backend_tokenizer", None)
    if backend is not None:  # it keeps, and saves, how the last batch was padded
        backend.no_padding()
        backend.no_truncation()
    digest = hashlib.sha256(transformers.__version__.encode())
    with tempfile.TemporaryDirectory() as folder:
        with naming(Path(folder)):
            processor.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()


def _read(path: Path) -> Proof | None:
    """Returns a kept proof; a missing or damaged file is none."""
    try:
        record = read_record(path)
    except (OSError, ValueError):
        return None
    hints = get_type_hints(Proof)
    if record.keys() != hints.keys():
        return None
    whole = all(fits(record[name], hint) for name, hint in hints.items())
    return Proof(**record) if whole else None


def _write(path: Path, proof: Proof) -> None:
    """Keeps a proof; without a cache that can be written every load proves anew."""
    try:
        write_record(path, asdict(proof))
    except OSError as error:
        logger.info("the self-check is not kept: %s", error)
