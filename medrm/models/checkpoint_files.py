"""The files of a checkpoint, which anyone may have written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME
from transformers.utils.hub import cached_file

from medrm.assets import PHANTOM_BASE
from medrm.errors import ConfigError, MedrmError, first_line

_BROKEN = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ImportError,
    SafetensorError,
    StrictDataclassError,
)
"""What transformers raises over files that are missing, torn or hold what they should not."""


@contextmanager
def readable(subject: str) -> Iterator[None]:
    """Turns what a checkpoint's files make transformers raise into a ConfigError.

    Args:
        subject: what is read, as the message names it.
    """
    try:
        yield
    except MedrmError:
        raise
    except _BROKEN as error:
        reason = first_line(error)
        if not isinstance(error, (OSError, ValueError, ImportError)):
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ConfigError(
            f"{subject} cannot be loaded: {reason.rstrip('.')}. Give a folder with a whole model "
            "in safetensors, a hub id that is reachable or already in the cache, or "
            f"{PHANTOM_BASE} (while offline, hub ids work only from the cache)."
        ) from error


def checkpoint_file(where: str, name: str, revision: str) -> Path | None:
    """Returns a file of a checkpoint, or None where it has none of that name."""
    path = cached_file(where, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    return None if path is None else Path(path)


def refuse_other_weights(where: str, config: PreTrainedConfig, revision: str) -> None:
    """Refuses an index of weights that names pickles, or files outside the checkpoint.

    `use_safetensors` says which index is read, not what it names.

    Raises:
        ConfigError: it names one.
    """
    name = vars(config).get("transformers_weights") or SAFE_WEIGHTS_INDEX_NAME
    path = checkpoint_file(where, name, revision) if name.endswith(".json") else None
    if path is None:
        return
    named = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
    refused = sorted(n for n in named if Path(n).name != n or Path(n).suffix != ".safetensors")
    if refused:
        raise ConfigError(
            f"{path} names {refused[0]!r}; accepted are safetensors files beside it. Pickles can "
            "run code when they are read. Convert the checkpoint to safetensors."
        )
