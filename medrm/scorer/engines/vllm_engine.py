"""Judges on vLLM, an optional extra; a LoRA adapter is loaded as it is saved.

vLLM needs a GPU, so medrm's own tests run this module against a stand-in that keeps to the
signatures vLLM documents (`LLM`, `LLM.chat`, `SamplingParams`, `LoRARequest`), never vLLM itself.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.version import Version

from medrm import chat_template
from medrm.data.batched import batched
from medrm.errors import ConfigError, DataError, first_line, report
from medrm.models.base_model import resolve_model
from medrm.models.find_base import find_base
from medrm.models.processors import load_processor
from medrm.models.vllm_rules import VLLM_VERSION, read_vllm_adapter
from medrm.schema import USAGE, State
from medrm.scorer.collator import Pixels, decode_into
from medrm.scorer.engines.base import (
    TOO_LONG,
    Completion,
    ModelSource,
    Request,
    Sampling,
    call_seed,
    thinking_opened,
    with_images,
)
from medrm.scorer.input_settings import input_settings

if TYPE_CHECKING:
    from transformers import ProcessorMixin

BATCH_REQUESTS = 128

_log = logging.getLogger(__name__)


class VllmEngine:
    """Completes conversations with vLLM's offline engine.

    Both orders of a case, and its votes, follow one another, so that vLLM's prefix cache computes
    the image and the question once.

    Attributes:
        name: "vllm".
        lookahead: how many cases are computed together.
        settings: what besides the weights and the request could change a reply.

    Args:
        model: a base as vLLM finds it, or a folder with whole weights.
        processor: of the model; its chat template decides where a system turn goes. None for a
            model of no family that medrm knows: the conversation goes as it is.
        adapter: folder of a LoRA adapter; None: the model as it is.
        batch_requests: calls handed to vLLM at once; their images are in memory.
        thinks: whether a thinking that the chat template opens is the model's to end.
        arguments: others of vLLM's `LLM`. By default `dtype` is "auto" (the checkpoint's own, but
            never fp32) and `max_model_len` (prompt and reply, in tokens) the model's own.

    Raises:
        ConfigError: vLLM is not installed, or cannot run the adapter.
        AdapterError: the folder is no LoRA adapter.
    """

    name = "vllm"

    def __init__(
        self,
        model: str,
        processor: ProcessorMixin | None,
        adapter: Path | None = None,
        batch_requests: int = BATCH_REQUESTS,
        *,
        thinks: bool = True,
        **arguments: Any,
    ) -> None:
        try:
            from vllm import LLM, SamplingParams
            from vllm import __version__ as vllm_version
            from vllm.lora.request import LoRARequest
        except ImportError as error:
            raise ConfigError(
                f"vLLM cannot be imported ({first_line(error)}). Install it with "
                '`pip install "medrm[vllm]"`, or leave the engine out to use transformers.'
            ) from error
        # Every call has a seed of its own.
        arguments = {"dtype": "auto", "max_model_len": None, "seed": 0, **arguments}
        self._lora = None
        if adapter is not None:
            arguments |= _lora_arguments(adapter, vllm_version)
            self._lora = LoRARequest(adapter.name, 1, str(adapter))
        self._params = SamplingParams
        self._llm = LLM(model, **arguments)
        self._processor = processor
        self._commands = None if processor is None else chat_template.Commands.of(processor)
        # The processor's own, whose date is fixed: vLLM has that of the base.
        self._template: dict[str, Any] = {}
        if processor is not None:
            self._template = {
                "chat_template": processor.chat_template,
                "chat_template_kwargs": chat_template.template_values(processor),
            }
        self._opening = thinking_opened(processor) if thinks and processor is not None else ""
        self.lookahead: int | None = batch_requests
        self.settings: Mapping[str, Any] = {
            **({} if processor is None else input_settings(processor)),
            "vllm": vllm_version,
            "dtype": arguments["dtype"],
            "max_length": arguments["max_model_len"],
        }
        self._batch_requests = batch_requests

    @classmethod
    def open(cls, source: ModelSource) -> VllmEngine:
        """Returns vLLM with a base model, or with a saved judge's base and its LoRA adapter.

        Raises:
            ConfigError: the weights of a saved judge's base were quantised.
        """
        contract, folder = source.contract, source.folder
        images = {"image": max(1, source.most_images)}
        if contract is None or folder is None:
            return cls(
                resolve_model(source.model),
                _known_processor(source),
                revision=source.revision,
                trust_remote_code=source.trust_remote_code,
                limit_mm_per_prompt=images,
            )
        if contract.quantisation is not None:
            raise ConfigError(
                f"The judge was trained on {contract.quantisation} weights, which vLLM would not "
                "repeat. Leave --engine out, to use transformers."
            )
        limits = {"min_pixels": contract.min_pixels, "max_pixels": contract.max_pixels}
        is_lora = contract.trained == "lora"
        pixels = {name: limit for name, limit in limits.items() if limit is not None}
        return cls(
            resolve_model(find_base(contract, folder, source.base)),
            load_processor(str(folder)),
            folder if is_lora else None,
            thinks=False,  # a saved judge replies as it was trained, with its verdict
            revision=contract.base_revision,
            dtype=contract.dtype,
            limit_mm_per_prompt=images,
            mm_processor_kwargs=pixels or None,
        )

    def plain(self, text: str) -> str:
        """Returns the text with the model's control words broken up."""
        return text if self._commands is None else self._commands.break_up(text)

    def rendered(self, request: Request) -> str | None:
        """Returns the prompt by the processor's chat template; None where it is not known."""
        if self._processor is None:
            return None
        return chat_template.render(self._processor, request.messages, "generation_prompt")

    def complete(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
        """Yields the reply to each request, in order."""
        for batch in batched(requests, self._batch_requests):
            yield from self._batch(batch, sampling)

    def _batch(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Completion]:
        pixels: Pixels = {}
        conversations, params = [], []
        failures: dict[int, Completion] = {}
        for index, request in enumerate(requests):
            try:
                conversations.append(self._conversation(request, pixels))
            except DataError as error:
                failures[index] = Completion(None, None, "bad_image", str(error))
                continue
            params.append(
                self._params(
                    temperature=sampling.temperature,
                    max_tokens=sampling.max_new_tokens,
                    seed=call_seed(request, sampling),
                )
            )
        replies = iter(self._chat(conversations, params))
        for index, request in enumerate(requests):
            yield replace(failures.get(index) or next(replies), prompt_digest=request.digest)

    def _conversation(self, request: Request, pixels: Pixels) -> list[chat_template.Message]:
        """Returns the conversation with its decoded images.

        Raises:
            DataError: an image cannot be decoded.
        """
        decode_into(pixels, request.case.images)
        images = [
            {"type": "image_pil", "image_pil": pixels[ref.digest]} for ref in request.case.images
        ]
        messages = request.messages
        if self._processor is not None:
            messages = chat_template.fit_roles(self._processor, messages)
        return with_images(messages, images)

    def _chat(
        self, conversations: list[list[chat_template.Message]], params: list[Any]
    ) -> list[Completion]:
        """Returns the replies; a batch that holds a refused prompt is halved until that is alone.

        vLLM takes back what it had accepted of a refused batch since its pull request 27420.
        """
        if not conversations:
            return []
        try:
            outputs = self._llm.chat(
                conversations, params, use_tqdm=False, lora_request=self._lora, **self._template
            )
        except ValueError as error:
            if len(conversations) == 1:
                state: State = "too_long" if TOO_LONG.search(str(error)) else "error"
                return [Completion(None, None, state, first_line(error))]
            half = len(conversations) // 2
            return [
                *self._chat(conversations[:half], params[:half]),
                *self._chat(conversations[half:], params[half:]),
            ]
        return [self._completion(output) for output in outputs]

    def _completion(self, output: Any) -> Completion:
        """Returns the first reply; a thinking that the chat template opened begins its text."""
        reply = output.outputs[0]
        counted = (output.prompt_token_ids, reply.token_ids)
        usage = None
        if None not in counted:
            usage = dict(zip(USAGE, map(len, counted), strict=True))
        return Completion(self._opening + reply.text, reply.finish_reason, "ok", usage=usage)


def _known_processor(source: ModelSource) -> ProcessorMixin | None:
    """Returns the processor of a base that vLLM is to run; None: of no family that medrm knows."""
    try:
        return load_processor(
            source.model, source.revision or "main", trust_remote_code=source.trust_remote_code
        )
    except chat_template.DatedTemplateError:
        raise
    except ConfigError as error:
        _log.warning("%s\nvLLM is given the conversations as they are.", error)
        return None


def _lora_arguments(adapter: Path, version: str) -> dict[str, Any]:
    """Returns what vLLM must be told to run an adapter.

    Raises:
        AdapterError: the folder is no LoRA adapter.
        ConfigError: vLLM would refuse the adapter, or run without a part of it.
    """
    lora = read_vllm_adapter(adapter)
    problems = list(lora.problems)
    needs_new = lora.adapts_tower or lora.labels > 0
    if needs_new and Version(version) < Version(VLLM_VERSION):
        part = "adapts the vision tower" if lora.adapts_tower else "holds a head"
        problems.append(f"it {part}, which needs vLLM >= {VLLM_VERSION}; this is {version}")
    if problems:
        problems.append("leave the engine out, to use transformers; or merge the adapter")
        raise ConfigError(report(f"vLLM cannot run the adapter {adapter}.", problems))
    arguments: dict[str, Any] = {"enable_lora": True, "max_lora_rank": lora.rank}
    if lora.adapts_tower:
        arguments["enable_tower_connector_lora"] = True
    return arguments
