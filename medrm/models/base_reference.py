"""How a saved model names its base, and how the base is found again.

- phantom-base under that name, with the digest of its weights;
- a hub id with the commit it was loaded from;
- a local folder under its last path component alone, with the digest of its weights, because a
  published file must not tell local paths. It is found again through `run.json` beside the saved
  folder, else below the working directory or beside the saved folder; the digest says whether it
  is the right one.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from medrm.assets import PHANTOM_BASE
from medrm.config import ModelOptions
from medrm.errors import AdapterError
from medrm.models.base_model import resolve_model

RUN_FILE = "run.json"


@dataclass(frozen=True, slots=True)
class BaseReference:
    """Which base model a saved model was trained on.

    Attributes:
        name: phantom-base, a hub id, or a local folder's name.
        revision: the hub commit; None for a folder.
        digest: SHA-256 of a folder's weights; None for a hub id.
    """

    name: str
    revision: str | None
    digest: str | None

    @property
    def identity(self) -> str:
        """Which weights a number belongs to, in one line without local paths."""
        if self.digest is None:
            return f"{self.name}@{self.revision}"
        return f"{self.name} sha256:{self.digest}"


def weights_digest(folder: Path) -> str:
    """Returns the SHA-256 over names and contents of a folder's safetensors files."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _commit(name: str, revision: str) -> str:
    """Returns the commit a hub model was loaded from: the cache keeps files below its name."""
    file = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(file).parent.name if isinstance(file, str) else revision


def reference_of(options: ModelOptions) -> BaseReference:
    """Returns the reference to a base model that has been loaded with these options."""
    name = options.model_name_or_path
    folder = Path(resolve_model(name))
    if not folder.is_dir():
        return BaseReference(name, _commit(name, options.model_revision), None)
    published_name = name if name == PHANTOM_BASE else folder.resolve().name
    return BaseReference(published_name, None, weights_digest(folder))


def _folders(name: str, saved: Path) -> list[Path]:
    """Returns where the local base of that name of a saved folder may lie, the likeliest first."""
    if name == PHANTOM_BASE:
        return [Path(resolve_model(name))]
    candidates = [Path(name), saved.parent / name]
    run = saved.parent / RUN_FILE
    if run.is_file():
        config = json.loads(run.read_text(encoding="utf-8")).get("config", {})
        candidates.insert(0, Path(config.get("model_name_or_path", name)))
    return [path for path in candidates if path.is_dir() and path.resolve().name == name]


def find_base(reference: BaseReference, saved: Path) -> str:
    """Returns where the base lies: a folder with the right weights, or a hub id.

    Args:
        reference: as recorded.
        saved: the folder that records it.

    Raises:
        AdapterError: there is no such folder, or its weights are others than those trained on.
    """
    if reference.digest is None:
        return reference.name
    folders = _folders(reference.name, saved)
    for path in folders:
        if weights_digest(path) == reference.digest:
            return str(path)
    reason = "other weights lie in " + ", ".join(map(str, folders)) if folders else "not found"
    raise AdapterError(
        f"{saved} was trained on the model folder {reference.name!r} with weights "
        f"{reference.digest[:12]}; {reason}. Put that folder into the working directory or beside "
        "the saved folder."
    )
