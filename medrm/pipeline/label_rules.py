"""How votes become labels, as the options of a run, of an evaluation or of a measurement say it."""

from __future__ import annotations

from typing import Literal, Protocol

from medrm.config.option import weights_of_annotators
from medrm.data.labels import Aggregation, LabelRules


class LabelOptions(Protocol):
    """Options by which votes become labels; `config.options.DataOptions` says what they mean."""

    @property
    def vote_ties(self) -> Literal["keep", "split", "drop"]:
        """What becomes of ties."""

    @property
    def vote_strength(self) -> Literal["share", "weight", "ignore"]:
        """What slight and strong votes count."""

    @property
    def min_vote_seconds(self) -> float:
        """The least time of a vote that counts."""

    @property
    def annotator_weights(self) -> str | None:
        """Annotator to weight, as JSON."""

    @property
    def aggregation(self) -> Aggregation:
        """By shares or by a model of the annotators."""


def label_rules(options: LabelOptions) -> LabelRules:
    """Returns the rules that options state.

    Raises:
        ConfigError: options that do not fit each other.
    """
    return LabelRules(
        options.vote_ties,
        weights_of_annotators(options.annotator_weights),
        options.aggregation,
        options.vote_strength,
        options.min_vote_seconds,
    )
