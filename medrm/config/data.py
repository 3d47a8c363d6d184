"""The options of a run's data: what is learned from and measured on, and how it is split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from medrm.config.field import option, positive_weights
from medrm.errors import ConfigError

DEFAULT_FRACTIONS = (0.7, 0.1, 0.2)
FEWEST_FOLDS, MOST_FOLDS = 2, 20


@dataclass(frozen=True)
class DataOptions:
    """What is learned from and measured on."""

    train_data: str | None = option(
        None, "Training cases: a file or folder, a name in data/, or a hub data set id."
    )
    benchmark: str | None = option(
        None,
        "What is measured: a name in evaluation/benchmarks/. None: the training data's test part.",
    )
    data_root: str | None = option(None, "Where the benchmark's files lie.")
    dimensions: list[str] | None = option(
        None, "Dimensions to learn, comma separated. None: those that the training labels mention."
    )
    primary_dimension: list[str] | None = option(
        None,
        "The dimension of the headline; of several, comma separated, the first that is labelled, "
        "where `any` is the first of all. None: overall where labelled, else the first.",
    )
    split_by_cluster: str | None = option(
        None,
        "Shares of train, development and test when one set serves for all (default 0.7,0.1,0.2).",
    )
    development_share: float = option(
        0.1,
        "Share of the training clusters kept for choosing, with a benchmark of its own or folds.",
    )
    crossfit: int = option(
        0,
        "Folds of a cross-fitted run, 2 to 20, in which one set serves for all: a model is trained "
        "for each, on the other folds, and judges it. 0: one model, one test part.",
    )
    aggregation: Literal["shares", "dawid_skene"] = option(
        "shares", "How votes become label shares: as counted, or weighted by Dawid-Skene."
    )
    vote_ties: Literal["keep", "split", "drop"] = option(
        "keep", "Tie votes: kept as they are, half a vote for each answer, or not counted."
    )
    annotator_weights: str | None = option(
        None, 'Weight of every annotator\'s votes, such as {"senior": 2, "junior": 1}.'
    )
    department_map: str | None = option(None, "YAML or JSON file: organ to department.")
    max_excluded_share: float = option(
        0.01, "Largest share of training cases that may be set aside (bad images, over-long)."
    )

    def __post_init__(self) -> None:
        problems = []
        if not 0 < self.development_share < 1:
            problems.append(f"development_share is {self.development_share}; give 0 < share < 1")
        if not 0 <= self.max_excluded_share <= 1:
            problems.append(f"max_excluded_share is {self.max_excluded_share}; give 0 to 1")
        for parsed in ("split_fractions", "weights_by_annotator"):
            try:
                getattr(self, parsed)
            except ConfigError as error:
                problems.append(str(error))
        if self.data_root is not None and self.benchmark is None:
            problems.append("data_root needs --benchmark NAME: it is where that benchmark lies")
        if None not in (self.train_data, self.benchmark, self.split_by_cluster):
            problems.append(
                "split_by_cluster splits one set, but train_data and benchmark are two; leave it "
                "out, or give one of them (development_share splits the training data)"
            )
        problems += self._crossfit_problems()
        if self.train_data is None and self.benchmark is None:
            problems.append(
                "there is nothing to train on: give --train_data PATH_OR_NAME or --benchmark NAME"
            )
        if problems:
            raise ConfigError("; ".join(problems))

    def _crossfit_problems(self) -> list[str]:
        problems = []
        if self.crossfit and not FEWEST_FOLDS <= self.crossfit <= MOST_FOLDS:
            problems.append(
                f"crossfit is {self.crossfit}; give {FEWEST_FOLDS} to {MOST_FOLDS} folds, or 0 for "
                "none"
            )
        if self.crossfit and None not in (self.train_data, self.benchmark):
            problems.append(
                "crossfit cuts one set into folds, but train_data and benchmark are two; leave one "
                "of them out (--benchmark null, where a recipe names it)"
            )
        if self.crossfit and self.split_by_cluster is not None:
            problems.append(
                "crossfit judges every case, so there is no test part; leave split_by_cluster out "
                "(development_share is what each model keeps of its training folds to choose by)"
            )
        return problems

    @property
    def weights_by_annotator(self) -> dict[str, float] | None:
        """The annotators' weights, None where none is given.

        Raises:
            ConfigError: not a mapping of names to positive numbers.
        """
        if self.annotator_weights is None:
            return None
        return positive_weights(
            "annotator_weights", self.annotator_weights, "annotator", '{"senior": 2}'
        )

    @property
    def split_fractions(self) -> tuple[float, ...]:
        """The fractions of train, development and test.

        Raises:
            ConfigError: not three positive numbers that sum to 1.
        """
        if self.split_by_cluster is None:
            return DEFAULT_FRACTIONS
        try:
            fractions = tuple(map(float, self.split_by_cluster.split(",")))
        except ValueError:
            fractions = ()
        if len(fractions) != 3 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-6:
            raise ConfigError(
                f"split_by_cluster is {self.split_by_cluster!r}; give three positive shares that "
                "sum to 1, such as 0.7,0.1,0.2"
            )
        return fractions
