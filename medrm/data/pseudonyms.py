"""Patients and studies, and addresses of readers, as keyed hashes, from which nobody can tell them.

Ids of a hospital are few, so that plain hashes could be tried out. These are made with a key (HMAC,
SHA-256) that stays in the cache of this machine: there the same id always has the same hash,
whether it stands in a DICOM file or in a row.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable
from contextlib import suppress
from functools import cache

from medrm.files import cache_dir, unwritable_refused

_HASH = re.compile(r"(?:dicom|keyed)-([0-9a-f]{32})")
"""A keyed hash, of a DICOM file's tag or of what a row states."""

_ADDRESS = re.compile(r"[^\s@]+@[^\s@]+")
"""An e-mail address, or a name that holds one."""

_PREFIXES = {"patient": "\0", "study": ""}
"""What stands before an id where it is hashed; before that of a patient its issuer, here none."""


@cache
def salt() -> bytes:
    """Returns the key of the hashes, made once for a cache and told to nobody.

    Raises:
        ConfigError: the cache cannot be written.
    """
    path = cache_dir() / "medical" / "salt"
    with unwritable_refused(path.parent):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = path.with_name(f"salt-{secrets.token_hex(8)}")
        draft.touch(0o600)
        draft.write_bytes(secrets.token_bytes(32))
        with suppress(FileExistsError):  # that of the first stays
            os.link(draft, path)
        draft.unlink()
        return path.read_bytes()


def key_name() -> str:
    """Returns what tells the key of this machine from others, and not what it is."""
    return keyed_hash("key", "", salt())[:16]


def keyed_hash(name: str, text: str, key: bytes) -> str:
    """Returns the hash of an id.

    Args:
        name: what it is of, `patient` or `study`.
        text: the id, that of a patient with its issuer and a zero byte before it.
        key: of the hash.
    """
    return hmac.new(key, f"{name}-{text}".encode(), hashlib.sha256).hexdigest()[:32]


def shown_reader(name: str) -> str:
    """Returns how a reader is called in what may leave the machine: an address by its keyed hash.

    >>> shown_reader("Dr. Ada")
    'Dr. Ada'
    """
    if not _ADDRESS.search(name):
        return name
    return f"reader-{keyed_hash('reader', name, salt())[:10]}"


def is_hash(stated: object) -> bool:
    """Returns whether a patient or study is stated as such a hash."""
    return isinstance(stated, str) and _HASH.fullmatch(stated) is not None


def pseudonyms(keys: Iterable[str]) -> dict[str, list[str]]:
    """Returns the hashes of patients and studies by these names, each once.

    Args:
        keys: of a case's cluster, such as `patient:17`; other keys are passed over.
    """
    hashes: dict[str, list[str]] = {}
    for name, _, stated in (key.partition(":") for key in keys):
        if name in _PREFIXES:
            hashed = stated
            if not is_hash(stated):
                hashed = f"keyed-{keyed_hash(name, _PREFIXES[name] + stated.strip(), salt())}"
            hashes.setdefault(name, []).append(hashed)
    return {name: list(dict.fromkeys(of_name)) for name, of_name in hashes.items()}


def shared_keys(keys: Iterable[str]) -> list[str]:
    """Returns keys that are the same whether ids or their hashes are stated.

    They sort behind keys of patients, images and questions, so that they name no cluster: the name
    would be another on each machine.
    """
    by_name = pseudonyms(keys).items()
    return [f"same {name}:{digest_of(stated)}" for name, hashes in by_name for stated in hashes]


def digest_of(hashed: str) -> str:
    """Returns what is the same in all forms of a hash."""
    return hashed.rpartition("-")[2]
