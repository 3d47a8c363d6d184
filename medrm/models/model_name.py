"""What a model's name may be, and in words why there is no such model; imports no torch.

A name is that of a folder, or a hub id. What the hub's client says of one that is neither tells
nothing of folders.
"""

from __future__ import annotations

import os
import re

from medrm.errors import ConfigError, MedrmError, first_line
from medrm.failures import causes
from medrm.files import PHANTOM_BASE

_HUB_ID = re.compile(r"(?!.*(--|\.\.))(?:\w[\w.-]*/)?\w[\w.-]*", re.ASCII)

_LOOKS = "a hub id looks like ORG/NAME, such as Qwen/Qwen2.5-VL-7B-Instruct"


def check_model_name(name: str, error: type[MedrmError] = ConfigError) -> None:
    """Refuses a name at which no folder lies and that no hub repository can have.

    Args:
        name: as a user has given it.
        error: what is raised.

    Raises:
        MedrmError: it is such a name, or one with a revision behind it.
    """
    if name == PHANTOM_BASE or os.path.exists(name) or _HUB_ID.fullmatch(name):
        return
    repository, _, revision = name.partition("@")
    if revision and _HUB_ID.fullmatch(repository):
        raise error(
            f"{name!r} holds a revision. Give {repository!r} and the revision apart: "
            f"revision={revision!r} in Python, --revision {revision} of a command, "
            f"--model_revision {revision} of a training."
        )
    raise error(
        f"There is no folder {name!r}; {_LOOKS}. Give a folder that is here, or such an id."
    )


def why_absent(error: Exception) -> str:
    """Returns why a hub id that is no folder cannot be had, from what the hub's client raised."""
    from huggingface_hub import errors, is_offline_mode

    reasons: dict[type[Exception], str] = {
        errors.GatedRepoError: "the hub asks for an access that this token does not have; its "
        "owners grant it on the repository's page",
        errors.RepositoryNotFoundError: "there is no such folder here, and the hub has no such "
        "repository that this token may see",
        errors.RevisionNotFoundError: "the repository on the hub has no such revision",
        errors.LocalEntryNotFoundError: "there is no such folder here, the cache lacks it or a "
        f"part of it, and {'HF_HUB_OFFLINE is set' if is_offline_mode() else 'no hub answers'}; "
        f"{_LOOKS}",
    }
    for cause in causes(error):
        for error_class, reason in reasons.items():
            if isinstance(cause, error_class):
                return reason
    return first_line(error).rstrip(".")
