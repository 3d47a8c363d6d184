"""What is published of a saved model: the files that medrm wrote, by name, and no other.

A sealed folder names them in its manifest; a folder of an earlier version has no manifest, and the
names that medrm writes are known. Whatever else lies there, such as notes, tokens or data, stays.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import constants

from medrm.errors import AdapterError
from medrm.evaluation.report import read_report
from medrm.files import RUN_FILE
from medrm.hub.card import CARD, benchmark_entries, published_card
from medrm.integrity import MANIFEST, is_sealed, sealed_names
from medrm.models.adapter_config import AdapterConfig, read_adapter_config
from medrm.models.adapter_files import MEDRM_FILE, check_undamaged, is_needed
from medrm.models.published_contract import published_files
from medrm.models.training_images import DIGESTS_FILE

RESULTS = ".eval_results/medrm-{}.yaml"
"""Where the hub looks for results; the name says that medrm wrote them."""

_WRITTEN = re.compile(
    r"(adapter_config|medrm|config|generation_config|processor_config|preprocessor_config"
    r"|video_preprocessor_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab"
    r"|chat_template|tekken|model\.safetensors\.index)\.json"
    r"|(adapter_model|head|model|model-\d{5}-of-\d{5})\.safetensors"
    r"|merges\.txt|vocab\.txt|chat_template\.jinja"
    r"|(tokenizer|spiece|sentencepiece\.bpe)\.model"
)
"""Names that medrm, PEFT and transformers give the files of a saved model."""

_RESULTS_WRITTEN = re.compile(r"\.eval_results/medrm-[^/]+\.yaml")

_OF_THE_HUB = frozenset({".gitattributes"})
"""What the hub itself puts into a new repository."""


class Target(NamedTuple):
    """Where a model is published.

    Attributes:
        repo_id: `ORG/NAME`.
        revision: branch; None: the main one.
        private: whether only its owners see it; None: a new one is private, another one stays.
        gated: how others get access: automatically, by hand, or None: as it is.
        training_digests: whether digests of the training images go along, whosever they are.
    """

    repo_id: str
    revision: str | None = None
    private: bool | None = None
    gated: str | None = None
    training_digests: bool = False


@dataclass(frozen=True)
class Release:
    """What is published.

    Attributes:
        folder: of the saved model.
        contract: of the saved model.
        files: name in the repository to the file here, or to its content.
        card: the model card as it is published.
    """

    folder: Path
    contract: AdapterConfig
    files: Mapping[str, Path | bytes]
    card: str
    _digests: dict[tuple[str, str], str] = field(default_factory=dict, compare=False, repr=False)

    def size(self, name: str) -> int:
        """Returns a file's size in bytes."""
        content = self.files[name]
        return len(content) if isinstance(content, bytes) else content.stat().st_size

    def sha256(self, name: str) -> str:
        """Returns the SHA-256 of a file in hex, by which the hub knows large files."""
        return self._digest(name, "sha256")

    def blob_id(self, name: str) -> str:
        """Returns the name that Git, and so the hub, gives the content of a small file."""
        return self._digest(name, "sha1", f"blob {self.size(name)}\0".encode())

    def _digest(self, name: str, algorithm: str, start: bytes = b"") -> str:
        if (name, algorithm) not in self._digests:
            content, digest = self.files[name], hashlib.new(algorithm, start)
            opened = io.BytesIO(content) if isinstance(content, bytes) else content.open("rb")
            with opened as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
            self._digests[name, algorithm] = digest.hexdigest()
        return self._digests[name, algorithm]


def plan_release(path: Path, target: Target, is_public: Callable[[str, str], bool]) -> Release:
    """Returns what is published of an adapter folder, or of the one in a run folder.

    Args:
        path: of an adapter folder or a run folder.
        target: where it goes, which the card names.
        is_public: whether everybody may read a data set of the hub, of that id, at that commit;
            then digests of its images go along.

    Raises:
        AdapterError: there is no saved model, or it is damaged.
        DataError: an evaluation of the run cannot be read.
    """
    is_run = (path / "adapter" / MEDRM_FILE).is_file() and not (path / MEDRM_FILE).is_file()
    folder = path / "adapter" if is_run else path
    contract = read_adapter_config(folder)
    check_undamaged(folder)
    run_dir = _measured_run(folder)
    card = published_card(folder, run_dir, target.repo_id, target.revision)
    files: dict[str, Path | bytes] = {name: folder / name for name in written_names(folder)}
    files |= published_files(folder, is_public, asked=target.training_digests)
    files[CARD] = card.encode()
    if run_dir is not None and (entries := benchmark_entries(run_dir, _address(target))):
        benchmark = read_report(run_dir / "evaluation" / "after")["benchmark"]["name"]
        files[RESULTS.format(benchmark)] = entries.encode()
    return Release(folder, contract, dict(sorted(files.items())), card)


def written_names(folder: Path) -> list[str]:
    """Returns the names of a saved model's files that medrm wrote; the card is not among them.

    Raises:
        AdapterError: the manifest of the folder cannot be read.
    """
    if is_sealed(folder):
        try:
            return sorted([*filter(is_needed, sealed_names(folder)), MANIFEST])
        except (OSError, ValueError) as error:
            raise AdapterError(f"{folder / MANIFEST} cannot be read: {error}.") from error
    return sorted(
        file.name
        for file in folder.iterdir()
        if _WRITTEN.fullmatch(file.name) and file.is_file() and not file.is_symlink()
    )


def made_by_medrm(names: Iterable[str]) -> bool:
    """Returns whether a repository may be published in: medrm made it, or it is empty."""
    repository_files = {*names} - _OF_THE_HUB
    return not repository_files or MEDRM_FILE in repository_files


def outdated_names(names: Iterable[str], manifest: bytes | None, release: Release) -> list[str]:
    """Returns which files of a repository an earlier version wrote that are not of this one.

    Args:
        names: of all files in the repository.
        manifest: of the version there; None: it has none.
        release: what is published now.
    """
    try:
        listed = set(json.loads(manifest)["files"]) if manifest is not None else None
    except (ValueError, TypeError, KeyError):
        listed = None
    return sorted(
        name
        for name in {*names} - release.files.keys()
        if name in (CARD, MANIFEST, DIGESTS_FILE)
        or _RESULTS_WRITTEN.fullmatch(name)
        or (bool(_WRITTEN.fullmatch(name)) if listed is None else name in listed)
    )


def _measured_run(folder: Path) -> Path | None:
    """Returns the folder of the run that made an adapter, where that was measured."""
    run_dir = folder.resolve().parent
    needed = (RUN_FILE, "comparison.json", "evaluation/before/report.json")
    is_run = folder.resolve().name == "adapter" and all(
        (run_dir / name).is_file() for name in (*needed, "evaluation/after/report.json")
    )
    return run_dir if is_run else None


def _address(target: Target) -> str:
    """Returns the page of a repository."""
    return f"{constants.HUGGINGFACE_CO_URL_HOME}{target.repo_id}"
