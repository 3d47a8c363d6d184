"""Which weights a number belongs to, in one line without local paths."""

from __future__ import annotations

import hashlib
from pathlib import Path

from medrm.config import ModelOptions
from medrm.models.adapter_config import read_adapter_config
from medrm.models.base_reference import Origin, origin_of, weights_digest

LORA_CONFIG = "adapter_config.json"


def base_identity(options: ModelOptions) -> str:
    """Returns the identity of a base model that has been loaded with these options."""
    return _of_origin(origin_of(options))


def saved_identity(folder: Path) -> str:
    """Returns the identity of a saved model: its base, and the digest of what was trained.

    The digest covers the weights and, of a LoRA adapter, by how much they count.

    Raises:
        AdapterError: the folder has no valid contract.
    """
    contract = read_adapter_config(folder)
    digest = hashlib.sha256(weights_digest(folder).encode())
    if (folder / LORA_CONFIG).is_file():
        digest.update((folder / LORA_CONFIG).read_bytes())
    base = _of_origin(Origin(contract.base_model, contract.base_revision, contract.base_digest))
    return f"{base} + {contract.trained} sha256:{digest.hexdigest()}"


def _of_origin(origin: Origin) -> str:
    if origin.digest is None:
        return f"{origin.name}@{origin.revision}"
    return f"{origin.name} sha256:{origin.digest}"
