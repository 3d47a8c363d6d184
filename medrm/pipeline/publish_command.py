"""`medrm publish`: what is to leave the machine, shown or published."""

from __future__ import annotations

import logging
from pathlib import Path

import yaml
from rich.console import Console

from medrm.errors import printable
from medrm.folder_lock import refuse_owned
from medrm.hub.card import card_header
from medrm.hub.publish import publish
from medrm.hub.release import Release, Target, plan_release
from medrm.models.training_images import DIGESTS_FILE
from medrm.pipeline.publish_request import PublishRequest

logger = logging.getLogger(__name__)


def publish_folder(request: PublishRequest) -> None:
    """Publishes a folder, or shows on stdout what would be published.

    Raises:
        AdapterError: the folder holds no saved model, or a damaged one.
        ConfigError: the target or the token is not accepted, or a run is writing the folder.
        RunFailed: publishing failed on the way; the message says how to go on.
    """
    folder = Path(request.folder)
    refuse_owned(folder, "Publish it when the run has ended.")
    target = Target(
        request.repo_id,
        request.revision,
        request.is_private,
        request.gated,
        request.publish_training_digests,
    )
    if request.dry_run:
        conditional_files = list[str]()

        def note(hub_id: str, revision: str) -> bool:
            conditional_files.append(
                f"{DIGESTS_FILE} as well, if everybody may read {hub_id} at {revision}"
            )
            return False

        lines = [*_described(plan_release(folder, target, note), target), *conditional_files]
        Console().print(
            printable("\n".join([*lines, "Nothing was sent."])),
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        return
    published = publish(folder, target, request.base)
    loaded = repr(request.repo_id) + (
        f", revision={request.revision!r}" if request.revision else ""
    )
    logger.info("%s\nmedrm.load(%s)", published.described(), loaded)


def _described(release: Release, target: Target) -> list[str]:
    """Returns the lines of a dry run."""
    visibility = {None: "private where it is new, else as it is", True: "private", False: "public"}
    sizes = {name: release.size(name) for name in release.files}
    return [
        f"target: {target.repo_id}, branch {target.revision or 'main'}",
        f"visibility: {visibility[target.private]}",
        f"gated: {target.gated or 'as it is'}",
        f"files: {len(sizes)}, {sum(sizes.values()):,} bytes, in one commit",
        *(f"  {size:>14,}  {name}" for name, size in sizes.items()),
        "card:",
        *(
            f"  {line}"
            for line in yaml.safe_dump(
                card_header(release.card), sort_keys=False, allow_unicode=True
            ).splitlines()
        ),
    ]
