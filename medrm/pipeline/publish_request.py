"""What one `medrm publish` is asked to do, as its options; imports no torch."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path

from medrm.config.option import as_in, option
from medrm.errors import ConfigError
from medrm.pipeline.requests import EvalRequest


@dataclass(frozen=True)
class PublishRequest:
    """What one `medrm publish` is asked to do.

    Attributes:
        folder: an adapter folder, or a run folder with one.
    """

    folder: str
    repo_id: str = option(MISSING, "repository to publish in: ORG/NAME; made where there is none")
    private: bool = option(False, "only its owners see it (so is every new repository)")
    public: bool = option(False, "everybody sees it, once it has been loaded back")
    gated: str | None = option(
        None,
        "who wants to load it must agree to research use; granted automatically or by hand",
        ("auto", "manual"),
    )
    revision: str | None = option(None, "branch to publish in (default: main)")
    base: str | None = as_in(EvalRequest, "base")
    publish_training_digests: bool = option(
        False,
        "send digests of the training images as well, so that everybody can check benchmarks for "
        "them, and tell of any picture whether it was trained on (of public data they go along)",
    )
    dry_run: bool = option(
        False, "show files, sizes, target and the card's header; nothing is sent or asked"
    )

    def __post_init__(self) -> None:
        from medrm.hub.connection import check_repo_id

        if self.private and self.public:
            raise ConfigError("--private and --public contradict each other; give one of them.")
        check_repo_id(self.repo_id)
        if not Path(self.folder).is_dir():
            raise ConfigError(f"There is no folder {self.folder!r}. Give an adapter's or a run's.")

    @property
    def is_private(self) -> bool | None:
        """Whether only its owners are to see it; None: nothing was said."""
        return True if self.private else False if self.public else None
