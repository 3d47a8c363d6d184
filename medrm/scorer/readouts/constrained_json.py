"""A judge's verdict read from probabilities: the JSON is given, the judge chooses the letters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, ProcessorMixin

from medrm.chat import JudgePrompt
from medrm.errors import ConfigError
from medrm.models.adapter_config import AdapterConfig
from medrm.schema import DIMENSIONS
from medrm.scorer.readouts.probability_readout import ProbabilityReadout
from medrm.scorer.runner import BATCH_ROWS


class ConstrainedJson(ProbabilityReadout):
    """A judge that replies with the JSON of its prompt and chooses the letters alone.

    Attributes:
        readout: "skeleton".
        dimensions: what is asked about.
        contract: of the saved judge, None for any other.

    Args:
        model: a stock model, or one with an adapter.
        processor: of the model.
        prompt: how it is asked.
        dimensions: what to ask about.
        batch_rows: most rows (calls) computed at once.
        max_length: longest prompt with its reply that is read, in tokens; None: no limit.
        contract: of a saved judge.

    Raises:
        ConfigError: the prompt asks for reasons, which cannot be given, or the tokenizer joins the
            letters of a reply.
    """

    readout = "skeleton"

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        processor: ProcessorMixin,
        prompt: JudgePrompt,
        *,
        dimensions: Sequence[str] = DIMENSIONS,
        batch_rows: int = BATCH_ROWS,
        max_length: int | None = None,
        contract: AdapterConfig | None = None,
    ) -> None:
        if prompt.rationale:
            raise ConfigError(
                f"The prompt {prompt.name!r} asks for reasons before the verdict, and the readout "
                "'skeleton' gives the whole reply but its letters. Choose the readout 'generate' "
                "or 'votes', or a prompt without reasons such as 'json'."
            )
        super().__init__(model, processor, prompt, dimensions, batch_rows, max_length)
        self.contract = contract
        self._asked_by = f"{prompt.name} {prompt.version}", prompt.digest

    @property
    def settings(self) -> Mapping[str, Any]:
        """What besides the weights could change a response."""
        name, digest = self._asked_by
        return {**super().settings, "prompt": name, "prompt_digest": digest}
