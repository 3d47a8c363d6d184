"""Which base model a saved model was trained on, told by its weights or its commit on the hub."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from medrm.config.options import ModelOptions
from medrm.files import PHANTOM_BASE, file_digest, status_of
from medrm.models.base_model import resolve_model

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class BaseReference:
    """Which base model a saved model was trained on.

    Attributes:
        name: phantom-base, a hub id, or a local folder's name.
        revision: the hub commit; None for a folder.
        digest: SHA-256 of the weights; None where only the commit is known.
    """

    name: str
    revision: str | None
    digest: str | None

    @property
    def identity(self) -> str:
        """Which weights a number belongs to, in one line without local paths."""
        if self.revision is not None or self.digest is None:
            return f"{self.name}@{self.revision}"
        return f"{self.name} sha256:{self.digest}"

    def is_same(self, other: BaseReference) -> bool:
        """Whether both mean the same weights, by whatever name where their digests are known."""
        if self.digest is not None and other.digest is not None:
            return self.digest == other.digest
        return (self.name, self.revision) == (other.name, other.revision)


def weights_digest(folder: Path) -> str:
    """Returns the SHA-256 over names and contents of a folder's safetensors files."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.name.encode() + _digest_of_version(path, *status_of(path)))
    return digest.hexdigest()


@lru_cache(maxsize=256)
def _digest_of_version(path: Path, *_status: int) -> bytes:
    """Returns the SHA-256 of a file that is read again only when its status has changed."""
    return bytes.fromhex(file_digest(path))


def _snapshot(name: str, revision: str) -> Path | None:
    """Returns where the cache keeps a hub model, in a folder named by its commit."""
    file = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(file).parent if isinstance(file, str) else None


def reference_of(options: ModelOptions) -> BaseReference:
    """Returns the reference to a base model that has been loaded with these options."""
    name = options.model_name_or_path
    folder = Path(resolve_model(name))
    if not folder.is_dir():
        snapshot = _snapshot(name, options.model_revision)
        return BaseReference(name, snapshot.name if snapshot else options.model_revision, None)
    published_name = name if name == PHANTOM_BASE else folder.resolve().name
    return BaseReference(published_name, None, weights_digest(folder))


def proven_reference_of(options: ModelOptions) -> BaseReference:
    """Returns `reference_of` with the digest of a hub model's weights as well.

    By it they are known again where they lie in a folder. Reading takes about a second for each GB.
    """
    reference = reference_of(options)
    snapshot = _snapshot(reference.name, options.model_revision) if reference.revision else None
    if snapshot is None:
        return reference
    return BaseReference(reference.name, reference.revision, weights_digest(snapshot))


def commit_of(folder: Path) -> str | None:
    """Returns the hub commit that a folder is known to hold; None: it is not known.

    The hub's cache names a folder by it; what was downloaded into a folder keeps it beside each
    file, in `.cache/huggingface/download/`.
    """
    folder = folder.resolve()
    if folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name):
        return folder.name
    commits = set()
    for weights in folder.glob("*.safetensors"):
        record = folder / ".cache" / "huggingface" / "download" / f"{weights.name}.metadata"
        if not record.is_file():
            return None
        with record.open(encoding="utf-8", errors="replace") as file:
            commits.add(file.readline(64).strip())
    return commits.pop() if len(commits) == 1 else None
