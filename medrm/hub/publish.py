"""Publishes a saved model: one commit, which is loaded back before it counts as published.

Every step may be started again: a repository that is there is used, files that are there are not
sent again, and where nothing differs no commit is made. So a start after a failure goes on.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from medrm.errors import ConfigError, RunFailed
from medrm.hub import connection
from medrm.hub.connection import HubConnection, bounded_requests, check_push
from medrm.hub.probes import probe
from medrm.hub.release import Release, Target, made_by_medrm, outdated_names, plan_release
from medrm.integrity import MANIFEST
from medrm.models.find_base import find_base
from medrm.schema import Response

logger = logging.getLogger(__name__)

_CONFLICT = (409, 412)

_NOT_YET = (EntryNotFoundError, RevisionNotFoundError, RepositoryNotFoundError)
"""What is said of a commit that has been made, by servers that do not know it yet."""


class HubState(NamedTuple):
    """What lies in a branch of a repository.

    Attributes:
        commit: the newest one.
        files: name to the digest of the content: SHA-256 of a large file, else Git's name for it.
        large: names of the files that are stored as large ones.
        is_private: whether only its owners see it.
        has_branch: whether the branch is there; else these are the main branch's.
    """

    commit: str
    files: Mapping[str, str]
    large: frozenset[str]
    is_private: bool
    has_branch: bool


@dataclass(frozen=True)
class PublishedCommit:
    """What was published.

    Attributes:
        url: of the commit.
        commit: its id.
        is_new: whether this start made it.
        is_private: whether only the repository's owners see it.
    """

    url: str
    commit: str
    is_new: bool
    is_private: bool

    def described(self) -> str:
        """Returns what is said in the end."""
        visibility = "private" if self.is_private else "public"
        start = "published" if self.is_new else "nothing had changed; checked"
        return f"{start}: {self.url} ({visibility}); loaded back with the same rewards, bit for bit"


def publish(path: Path, target: Target, base: str | None = None) -> PublishedCommit:
    """Publishes an adapter folder, or that of a run folder, and loads it back.

    The token comes from the environment (HF_TOKEN, or `hf auth login`). A new repository is private
    until its commit has been loaded back, whatever it is to be.

    Args:
        path: of the adapter folder or the run folder.
        target: where to.
        base: where the model's base lies; None: it is looked for.

    Raises:
        AdapterError: the folder holds no saved model, or a damaged one.
        ConfigError: bad name, no token, no right to write, offline, or a repository that medrm did
            not make.
        RunFailed: the hub cannot be reached, somebody else publishes there at the same moment, or
            what comes back is not what was sent.
    """
    check_push(target.repo_id)
    with bounded_requests():
        release = plan_release(path, target, partial(_is_public, HubConnection(target.repo_id)))
        if base is None and release.contract.trained != "full":
            # What is loaded back lies elsewhere, but has the same base.
            base_location = find_base(release.contract, release.folder)
            base = base_location if Path(base_location).is_dir() else None
        return _Publication(release, target, base).run()


def _is_public(hub: HubConnection, hub_id: str, revision: str) -> bool:
    """Returns whether everybody may read a data set, asked as nobody in particular."""
    try:
        about = hub.ask(
            "Looking at the training data",
            lambda: HfApi().dataset_info(hub_id, revision=revision, token=False),
        )
    except ConfigError:
        return False
    return not (about.private or about.gated or about.disabled)


class _Publication:
    """The steps of publishing one release."""

    def __init__(self, release: Release, target: Target, base: str | None) -> None:
        self._release, self._target, self._base = release, target, base
        self._api = HfApi()
        self._hub = HubConnection(target.repo_id)

    def run(self) -> PublishedCommit:
        """Makes repository and commit where they lack, loads back, and opens it if asked."""
        repo_id, wants_private = self._target.repo_id, self._target.private
        before = self._hub.ask("Looking at the repository", self._look)
        self._refuse_foreign(before)
        logger.info("%s is loaded, to know what it says of cases made here", self._release.folder)
        expected = probe(self._release.folder, self._base)
        if before is None:
            self._hub.ask("Making the repository", self._create)
            before = self._hub.ask("Looking at the repository", self._seen, also=_NOT_YET)
            self._refuse_foreign(before)
        if not before.has_branch:
            self._hub.ask("Making the branch", self._branch)
        if wants_private and not before.is_private:
            self._set(private=True)
        commit = self._hub.ask("The commit", lambda: self._commit(before))
        url = f"{self._api.endpoint}/{repo_id}/commit/{commit}"
        if commit == before.commit:
            logger.info("%s holds all of it: nothing has changed. It is loaded back.", repo_id)
        else:
            logger.info("%s: one commit. It is loaded back.", url)
        self._load_back(commit, url, expected)
        settings: dict[str, Any] = (
            {} if self._target.gated is None else {"gated": self._target.gated}
        )
        if wants_private is False and before.is_private:
            settings["private"] = False
        if settings:
            self._set(**settings)
        is_private = before.is_private if wants_private is None else wants_private
        return PublishedCommit(url, commit, commit != before.commit, is_private)

    def _look(self) -> HubState | None:
        """Returns what lies in the branch; None: there is no repository that may be seen."""
        try:
            return self._seen()
        except RepositoryNotFoundError:
            return None

    def _seen(self) -> HubState:
        """Returns what lies in the branch of a repository that is there."""
        repo_id, has_branch = self._target.repo_id, True
        describe = partial(self._api.model_info, repo_id, files_metadata=True)
        try:
            info = describe(revision=self._target.revision)
        except RevisionNotFoundError:
            info, has_branch = describe(), False
        files, large = dict[str, str](), set[str]()
        for file in info.siblings or ():
            files[file.rfilename] = str(file.blob_id if file.lfs is None else file.lfs.sha256)
            if file.lfs is not None:
                large.add(file.rfilename)
        return HubState(str(info.sha), files, frozenset(large), bool(info.private), has_branch)

    def _refuse_foreign(self, state: HubState | None) -> None:
        if state is not None and not made_by_medrm(state.files):
            names = ", ".join(sorted({*state.files} - {".gitattributes"})[:5])
            raise ConfigError(
                f"{self._target.repo_id!r} exists, and medrm did not make it: it holds {names}, "
                "and no medrm.json. Nothing was changed in it. Give another --repo_id."
            )

    def _create(self) -> None:
        self._api.create_repo(self._target.repo_id, private=True, exist_ok=True)

    def _branch(self) -> None:
        self._api.create_branch(
            self._target.repo_id, branch=str(self._target.revision), exist_ok=True
        )

    def _set(self, **settings: Any) -> None:
        names = ", ".join(f"{name} {value}" for name, value in settings.items())
        self._hub.ask(
            f"Setting {names}",
            lambda: self._api.update_repo_settings(self._target.repo_id, **settings),
        )

    def _commit(self, before: HubState) -> str:
        """Makes the one commit on top of what was seen, and returns its id.

        An answer may get lost: then the commit is found to be there.

        Args:
            before: what was there when all began.

        Raises:
            RunFailed: somebody else has changed the branch since.
        """
        now = self._seen()
        operations = self._operations(now)
        if not operations:
            return now.commit
        try:
            if now.commit == before.commit:
                made = self._api.create_commit(
                    self._target.repo_id,
                    operations,
                    commit_message="Publish with medrm",
                    revision=self._target.revision,
                    parent_commit=now.commit,
                )
                return str(made.oid)
        except HfHubHTTPError as error:
            if error.response.status_code not in _CONFLICT:
                raise
            now = self._seen()
            if not self._operations(now):
                return now.commit
            if now.commit == before.commit:  # it is only locked
                raise
        raise RunFailed(
            f"{self._target.repo_id!r} was changed by somebody else while this was being published "
            "(412), so that nothing was. Start the same command again to publish on top of it."
        )

    def _operations(self, state: HubState) -> list[Any]:
        """Returns what differs between the branch and the release."""
        release = self._release
        changed = [
            name
            for name in release.files
            if state.files.get(name)
            != (release.sha256(name) if name in state.large else release.blob_id(name))
        ]
        outdated = outdated_names(state.files, self._manifest(state), release)
        return [
            *(CommitOperationAdd(name, release.files[name]) for name in changed),
            *(CommitOperationDelete(name, is_folder=False) for name in outdated),
        ]

    def _manifest(self, state: HubState) -> bytes | None:
        """Returns the manifest of the version in a branch; None: it has none."""
        if MANIFEST not in state.files:
            return None
        with TemporaryDirectory() as scratch:
            return Path(
                hf_hub_download(
                    self._target.repo_id,
                    MANIFEST,
                    revision=state.commit,
                    cache_dir=scratch,
                    etag_timeout=connection.TIMEOUT,
                )
            ).read_bytes()

    def _load_back(self, commit: str, url: str, expected: Sequence[Response]) -> None:
        """Downloads a commit anew and compares files and rewards.

        Raises:
            RunFailed: it is not what was sent, or gives other rewards.
        """
        release = self._release
        with TemporaryDirectory() as scratch:
            snapshot = Path(
                self._hub.ask(
                    "Loading it back",
                    lambda: snapshot_download(
                        self._target.repo_id,
                        revision=commit,
                        cache_dir=scratch,
                        allow_patterns=list(release.files),
                        etag_timeout=connection.TIMEOUT,
                    ),
                    also=_NOT_YET,
                )
            )
            problems = [
                name for name in release.files if _sha256(snapshot / name) != release.sha256(name)
            ]
            if not problems and probe(snapshot, self._base) != list(expected):
                problems = ["the rewards of the probe cases, though all files are the same"]
        if problems:
            raise RunFailed(
                f"What comes back from {url} is not what was published: {', '.join(problems)} "
                "differ. Do not use that commit; start the same command again."
            )


def _sha256(path: Path) -> str | None:
    """Returns the SHA-256 of a file in hex; None: there is none."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
