"""The registry of engines: what completes a judge's conversations; imports no torch.

An engine turns conversations into replies and knows nothing of verdicts. A new one is one entry
here and one module with an `Engine` (see `medrm.scorer.engines.base`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from medrm.scorer import resolve


@dataclass(frozen=True)
class EngineEntry:
    """One engine.

    Attributes:
        name: as `--engine` has it.
        implementation: module and class, such as ".vllm_engine:VllmEngine"; a module with a leading
            dot lies in `medrm.scorer.engines`. All but that of "transformers", which runs a model
            in memory, are opened by their class method `open`, which takes a `ModelSource`.
        holds_weights: whether a service knows the model by its name, so that nothing is looked for
            on disk or on the hub.
    """

    name: str
    implementation: str
    holds_weights: bool = False


_ENGINES = (
    EngineEntry("transformers", ".transformers_engine:TransformersEngine"),
    EngineEntry("vllm", ".vllm_engine:VllmEngine"),
    EngineEntry("openai", ".openai_engine:OpenAIEngine", holds_weights=True),
)

ENGINES: dict[str, EngineEntry] = {engine.name: engine for engine in _ENGINES}
"""All engines by name, in the order in which messages list them."""


def engine_class(name: str) -> Any:
    """Returns the class of a registered engine; its module is imported here."""
    return resolve(ENGINES[name].implementation, __name__)
