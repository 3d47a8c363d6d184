"""Finds the base of a saved model: by its digest or commit, wherever it lies and however named.

- phantom-base is shipped, and checked by the digest of its weights;
- a hub id is loaded at the commit that it was trained on;
- a local folder is recorded under its last path component alone, because a published file must not
  tell local paths. It is looked for as `run.json` beside the saved folder names it, below the
  working directory and beside the saved folder; then among the folders there, for it may have
  another name. The digest says which is the right one.

`base`, which every command takes as `--base`, says where it lies instead. It is checked likewise:
nothing scores on another base than the one that was trained on.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medrm.errors import AdapterError, ConfigError
from medrm.files import PEFT_CONFIG, PHANTOM_BASE, RUN_FILE
from medrm.models.adapter_config import AdapterConfig
from medrm.models.adapter_files import download
from medrm.models.base_model import resolve_model
from medrm.models.base_reference import BaseReference, commit_of, weights_digest

logger = logging.getLogger(__name__)

_HUB_ID = re.compile(r"[\w.-]{1,100}(/[\w.-]{1,100})?")
_FOLDER = re.compile(r"[^/\\\0]{1,255}")
_REVISION = re.compile(r"[\w./-]{1,200}")
_LARGEST_JSON = 2**24
"""Bytes of a file that is looked into while the base is sought."""


def find_base(contract: AdapterConfig, saved: Path, base: str | Path | None = None) -> str:
    """Returns where the base of a saved model lies: a folder with the right weights, or a hub id.

    Of a saved model with all weights that is its own folder.

    Args:
        contract: of the saved model.
        saved: its folder.
        base: where the base lies now: a folder, phantom-base or a hub id, which may end in
            `@REVISION`; None: it is looked for.

    Raises:
        AdapterError: it is not found, its weights are others than those trained on, or cannot be
            told from others.
        ConfigError: `base` is a path at which nothing lies, or is given where none is needed.
    """
    if contract.trained == "full":
        if base is not None:
            raise ConfigError(f"{saved} holds all its weights and needs no base. Leave it out.")
        return str(saved)
    reference = contract.base
    _check(reference, saved)
    if base is not None:
        return _stated(reference, saved, str(base))
    if reference.revision is not None and not os.path.exists(reference.name):
        return reference.name
    looked_at: dict[Path, str] = {}
    for path in _candidates(contract, saved):
        if path not in looked_at:
            problem = _difference(reference, path)
            if problem is None:
                return str(path)
            looked_at[path] = problem
    named = [str(path) for path in looked_at if path.name == Path(reference.name).name]
    reason = f"other weights lie in {', '.join(named)}" if named else "not found"
    raise AdapterError(
        f"{saved} was trained on {_described(reference)}; {reason}. Say where that model lies "
        "(--base FOLDER; medrm.load(..., base=FOLDER)), or put it into the working directory or "
        "beside the saved folder."
    )


def _check(reference: BaseReference, saved: Path) -> None:
    """Refuses a reference that says too little, or that is written as a path.

    Raises:
        AdapterError: it does.
    """
    plain = _FOLDER if reference.revision is None else _HUB_ID
    if reference.revision is None and reference.digest is None:
        problem = "neither the commit nor the digest of its weights"
    elif reference.revision is not None and (
        not _REVISION.fullmatch(reference.revision) or reference.name == PHANTOM_BASE
    ):
        problem = f"the commit {reference.revision[:80]!r}, which is none of it"
    elif not plain.fullmatch(reference.name) or reference.name in (".", ".."):
        problem = f"{reference.name[:80]!r}, which is neither a hub id nor a folder's name"
    else:
        return
    raise AdapterError(f"{saved} names of its base {problem}. Save the adapter again.")


def _described(reference: BaseReference) -> str:
    digest = f" with weights {reference.digest[:12]}" if reference.digest else ""
    if reference.revision is not None:
        return f"the hub model {reference.name!r} at commit {reference.revision[:12]}{digest}"
    return f"the model folder {reference.name!r}{digest}"


def _difference(reference: BaseReference, folder: Path) -> str | None:
    """Returns how the weights of a folder differ from those trained on."""
    if not any(folder.glob("*.safetensors")):
        return "holds no weights (*.safetensors)"
    if reference.digest is not None:
        digest = weights_digest(folder)
        return None if digest == reference.digest else f"has weights {digest[:12]}"
    commit = commit_of(folder)
    if commit is None:
        return (
            "does not tell of which commit it is, and the contract, of an earlier version, has no "
            "digest of the weights"
        )
    return None if commit == reference.revision else f"is of commit {commit[:12]}"


def _stated(reference: BaseReference, saved: Path, base: str) -> str:
    """Returns the base that the caller names, when it is the right one.

    Raises:
        AdapterError: it is another one, or cannot be told from others.
    """
    name, _, revision = (base, "", "") if os.path.exists(base) else base.partition("@")
    where = resolve_model(name)
    if Path(where).is_dir():
        folder = Path(where)
    elif (name, revision or reference.revision) == (reference.name, reference.revision):
        return reference.name
    else:
        own_revision = reference.revision if name == reference.name else None
        advice = "Give as base a folder, phantom-base or ORG/NAME@REVISION."
        folder = download(name, revision or own_revision, advice)
    problem = _difference(reference, folder)
    if problem is None:
        return str(folder)
    raise AdapterError(
        f"{saved} was trained on {_described(reference)}; the base {base!r} {problem}. Give the "
        "base that it was trained on; on another one its scores would mean nothing."
    )


def _candidates(contract: AdapterConfig, saved: Path) -> Iterator[Path]:
    """Yields folders that may be the base, the likeliest first."""
    name, parent = contract.base.name, saved.resolve().parent
    if name == PHANTOM_BASE:
        yield Path(resolve_model(name))
        return
    trained_on = _of_run(parent / RUN_FILE)
    paths = [trained_on] if trained_on is not None else []
    if trained_on is not None and not trained_on.is_absolute():  # to where the run was started
        paths += [folder / trained_on for folder in parent.parents]
    paths += [Path(name), parent / name]
    yield from (path for path in paths if os.path.isdir(path))
    places = {path.parent.resolve(): None for path in paths if os.path.isdir(path.parent)}
    for place in places:
        yield from (path for path in _listed(place) if _is_of_type(path, contract.family))


def _of_run(file: Path) -> Path | None:
    """Returns the base model that a run names; None: it names none that is a path."""
    settings = _json_object(file).get("config")
    name = settings.get("model_name_or_path") if isinstance(settings, dict) else None
    return Path(name) if isinstance(name, str) and name and "\0" not in name else None


def _listed(place: Path) -> list[Path]:
    """Returns the folders in a folder."""
    try:
        return sorted(Path(entry.path) for entry in os.scandir(place) if entry.is_dir())
    except OSError:
        return []


def _is_of_type(folder: Path, family: str) -> bool:
    """Returns whether a folder holds a whole model of a type; only such are read to be compared."""
    file = folder / "config.json"
    if not file.is_file() or (folder / PEFT_CONFIG).exists():
        return False
    return _json_object(file).get("model_type") == family


def _json_object(file: Path) -> dict[str, Any]:
    """Returns what a JSON file holds; nothing where there is none that can be read."""
    try:
        if not file.is_file() or file.stat().st_size > _LARGEST_JSON:
            return {}
        record = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}
