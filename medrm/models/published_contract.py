"""What is published of the images that a saved model was trained on: as little as can be.

The digests of the images stay in the run folder, for whoever has them can tell of any picture
whether it was trained on.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

from medrm.files import RUN_FILE
from medrm.integrity import MANIFEST, manifest_with
from medrm.models.adapter_config import config_bytes, read_adapter_config
from medrm.models.adapter_files import MEDRM_FILE
from medrm.models.training_images import (
    DIGESTS_FILE,
    KnownImages,
    file_of,
    known_images,
    record_of,
)


def images_of(saved: Path) -> KnownImages:
    """Returns the images that a saved model was trained on, as far as that can be known here.

    Raises:
        AdapterError: the folder has no valid config.
    """
    config = read_adapter_config(saved)
    return known_images(saved, config.training_images, config.training_pixel_digests)


def published_files(
    saved: Path, is_public: Callable[[str, str], bool], *, asked: bool = False
) -> dict[str, bytes]:
    """Returns the files that leave with other content than they have in an adapter folder.

    The digests of the training images are among them only where these are public themselves, or
    where they are asked for. A contract of an earlier version that holds them leaves without them.

    Args:
        saved: the adapter folder.
        is_public: whether everybody may read a data set of the hub, of that id, at that commit.
        asked: whether the digests are to be published in any case (`--publish_training_digests`).

    Raises:
        AdapterError: the folder has no valid config.
    """
    config, images = read_adapter_config(saved), images_of(saved)
    files: dict[str, bytes] = {}
    if config.training_images is None and images.digests is not None:
        config = dataclasses.replace(
            config, training_images=record_of(images), training_pixel_digests=()
        )
        files[MEDRM_FILE] = config_bytes(config)
        if (saved / MANIFEST).is_file():
            files[MANIFEST] = manifest_with(saved, files)
    if images.digests is not None and (asked or _are_public(saved, is_public)):
        files[DIGESTS_FILE] = file_of(images)
    return files


def _are_public(saved: Path, is_public: Callable[[str, str], bool]) -> bool:
    """Returns whether all images come from public data sets of the hub."""
    path = saved.absolute().parent / RUN_FILE
    if not path.is_file():
        return False
    run = json.loads(path.read_text(encoding="utf-8"))
    sets = [*run["data"].get("mixture", {}).values()] or [run["data"]["train"]]
    named = [(source.get("hub_id"), source["revision"]) for source in sets]
    if run["config"].get("init_adapter") is not None or any(hub_id is None for hub_id, _ in named):
        return False
    return all(is_public(hub_id, revision) for hub_id, revision in named)
