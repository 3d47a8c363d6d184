"""The one inference path: cases in, responses out. Imports no torch itself."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from medrm.readouts import READOUTS
from medrm.schema import Case, Response

if TYPE_CHECKING:
    from medrm.scorer.engines.base import Request


class Scorer(Protocol):
    """What can be evaluated: a reward model, a judge, or a readout of a base model.

    One that has `measures_noise` set to True is asked about a few cases once more, each by itself,
    to measure how far rounding moves its margins (`medrm.evaluation.measures.rounding`).

    Attributes:
        readout: how verdicts are read from it, a name of `medrm.readouts.READOUTS`.
    """

    readout: str

    @property
    def dimensions(self) -> tuple[str, ...]:
        """The names of the D dimensions that it scores or is asked about."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What besides the weights could change a response, by name.

        What belongs to one readout alone stands there alone.
        """

    @property
    def lookahead(self) -> int | None:
        """How many cases it computes together, so that they may change each other's rounding.

        None: what it says of a case depends on the case alone.
        """

    def respond(self, cases: Iterable[Case]) -> Iterator[Response]:
        """Yields all responses to each case, the cases in their order.

        Rewards come in one response of order "forward". A judge yields all calls of the forward
        order, then the same calls in the reversed order. What cannot be read has a state that says
        so; nothing is raised for it.
        """


@runtime_checkable
class AsksInPairs(Protocol):
    """A scorer that asks a judge about two answers at a time."""

    def prompts(self, case: Case) -> list[tuple[Request, str | None]]:
        """Returns the calls about a case's first two answers, each with its rendered prompt.

        None: the conversation is rendered elsewhere.
        """


def resolve(implementation: str, package: str) -> Any:
    """Returns what a registry names by module and name, such as ".answer_rewards:Likelihood".

    Args:
        implementation: as above; a module with a leading dot lies in `package`.
        package: the registry's own.
    """
    module, _, name = implementation.partition(":")
    return getattr(importlib.import_module(module, package), name)


def implementation_of(readout: str) -> Any:
    """Returns the class that implements a registered readout; its module is imported here.

    Args:
        readout: one of the names in `medrm.readouts.READOUTS`.
    """
    return resolve(READOUTS[readout].implementation, f"{__name__}.readouts")
