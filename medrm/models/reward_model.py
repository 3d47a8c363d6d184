"""The reward model: a stock image-and-text model whose class is swapped and that carries a head.

    batch of rows x L tokens        keys of the processor, and `SharedPrefixBatch` where prefixes
      |                             are shared
      v   `final_states`            the stock model without its LM head
    hidden states [rows, L, H]
      |
      v   `reward_states`           here the reward is read: at the last token of each
    states [answers, O, H]          answer's row or branch, in each of O orders (1 unless answers
      |                             see each other)
      v   model.score               `RewardHead`, fp32
    rewards [answers, O, D]  ->  mean over orders  ->  `RewardOutput.rewards` [answers, D]

The module names stay those of the stock class and the head is one more module, `score`. So the
adapter of a reward model also loads on the stock model, and a full checkpoint names the stock
architecture.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from medrm.models.backbone import final_states, last_attended
from medrm.models.prefix_sharing.attention import shared_prefix_states
from medrm.models.prefix_sharing.batch import SharedPrefixBatch
from medrm.models.prefix_sharing.kv_cache import cached_answer_states, caches_answers

HEAD = "score"
"""The name of the head's module in the model."""


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """The shape of a reward head; stored in `medrm.json`.

    Attributes:
        dimensions: the D names, in the order of the outputs.
        kind: "linear" = one linear layer; "mlp" = linear, SiLU, linear (arXiv 2509.16127);
            "affine" = one layer with a bias, as other people's reward models have it.
        hidden_size: width of the MLP's middle layer; None: the model's hidden size.
        ties: the pair loss whose tie parameter is learned with the head; "none": there is none.
        tied_dimensions: dimensions whose training labels contain ties; in the others the parameter
            is fixed at "no tie".
    """

    dimensions: tuple[str, ...]
    kind: Literal["mlp", "linear", "affine"] = "mlp"
    hidden_size: int | None = dataclasses.field(default=None, metadata={"range": (1, 2**16)})
    ties: str = "none"
    tied_dimensions: tuple[str, ...] = ()


@dataclass
class RewardOutput(ModelOutput):
    """What a reward model returns.

    Attributes:
        rewards: [answers, D], fp32. A row of the batch holds one answer or, where prefixes are
            shared, several; they stand here in the order of the batch.
        tie_logits: [D], fp32, or None without a model of ties. Minus infinity means no tie.
            Davidson: nu = exp(tie_logit); Rao-Kupper: theta = 1 + exp(tie_logit).
    """

    rewards: Tensor | None = None
    tie_logits: Tensor | None = None


def _linear(inputs: int, outputs: int, bias: bool, generator: torch.Generator) -> nn.Linear:
    """Returns a layer with normal weights of std 1 / sqrt(inputs + 1) (arXiv 2009.01325)."""
    # On the meta device nn.Linear's own initialisation leaves the global generator alone.
    layer = nn.Linear(inputs, outputs, bias=bias, dtype=torch.float32, device="meta")
    layer.to_empty(device="cpu")
    with torch.no_grad():
        layer.weight.normal_(0.0, (inputs + 1) ** -0.5, generator=generator)
        if layer.bias is not None:
            layer.bias.zero_()
    return layer


class RewardHead(nn.Module):
    """Maps hidden states to D rewards; its parameters and its products are always fp32.

    bf16 has a spacing of 1/128 at 1: rewards of two good answers would often be equal.
    """

    def __init__(self, inputs: int, spec: HeadSpec, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        hidden = spec.hidden_size or inputs
        self.spec = dataclasses.replace(spec, hidden_size=hidden if spec.kind == "mlp" else None)
        outputs = len(spec.dimensions)
        # No output bias: only differences of rewards enter the likelihood of a preference.
        if spec.kind == "mlp":
            self.layers = nn.Sequential(
                _linear(inputs, hidden, bias=True, generator=generator),
                nn.SiLU(),
                _linear(hidden, outputs, bias=False, generator=generator),
            )
        else:
            bias = spec.kind == "affine"
            self.layers = nn.Sequential(_linear(inputs, outputs, bias, generator))
        self.tie_logit = (
            nn.Parameter(torch.zeros(outputs, dtype=torch.float32)) if spec.ties != "none" else None
        )
        tied = torch.tensor([name in spec.tied_dimensions for name in spec.dimensions])
        self.register_buffer("tied", tied, persistent=False)

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns rewards [..., D] and tie logits [D] (or None) for states [..., H].

        The tie logits come from here, where parameters split over processes are gathered.
        """
        with torch.autocast(states.device.type, enabled=False):
            rewards = self.layers(states.float())
        if self.tie_logit is None:
            return rewards, None
        tied = cast(Tensor, self.tied)
        return rewards, torch.where(tied, self.tie_logit, float("-inf"))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RewardHead:
        """Moves the head with the model but refuses to change its precision."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(move, recurse)  # type: ignore[no-untyped-call]
        return self


class RewardModelMixin:
    """What the swapped class adds to the stock class."""

    score: nn.Module

    def reward_states(
        self,
        attention_mask: Tensor | None = None,
        shared_prefix: SharedPrefixBatch | None = None,
        **inputs: Any,
    ) -> Tensor:
        """Returns the states after the final norm at which each reward is read, [answers, O, H].

        In a batch of separate rows that is each row's last attended token, in a shared-prefix batch
        the last token of each answer in its branch (`reward_indices`). O is 1, or the number of
        orders in which answers that see each other are read.

        Args:
            attention_mask: [rows, L] of separate rows.
            shared_prefix: of a shared-prefix batch, which has no mask.
            inputs: the other keys of the batch.
        """
        if shared_prefix is not None:
            stock = cast(PreTrainedModel, self)
            if caches_answers(stock):
                return cached_answer_states(stock, shared_prefix, **inputs)[:, None]
            states = shared_prefix_states(stock, shared_prefix, **inputs)
            return states[torch.tensor(shared_prefix.reward_indices, device=states.device)]
        assert attention_mask is not None
        stock = cast(PreTrainedModel, self)
        states = final_states(stock, attention_mask=attention_mask, use_cache=False, **inputs)
        return last_attended(states, attention_mask)[:, None]

    def forward(self, **inputs: Any) -> RewardOutput:
        """Returns the rewards of each row, or of each answer of a shared-prefix batch."""
        rewards, tie_logits = self.score(self.reward_states(**inputs))
        return RewardOutput(rewards=rewards.mean(dim=1), tie_logits=tie_logits)

    def stock_forward(self, **inputs: Any) -> Any:
        """Returns what the stock model returns."""
        return super().forward(**inputs)  # type: ignore[misc]

    def enable_input_require_grads(self) -> None:
        """Hooks the language embedding alone.

        The stock method hooks the vision tower's embedding as well, and then a frozen tower builds
        a graph that nobody reads.
        """
        embedding = cast(PreTrainedModel, self).get_input_embeddings()
        self._require_grads_hook = embedding.register_forward_hook(
            lambda _module, _inputs, output: output.requires_grad_(True)
        )
        self._require_grads_hooks = [self._require_grads_hook]


def attach_head(model: PreTrainedModel, spec: HeadSpec, seed: int) -> PreTrainedModel:
    """Makes a reward model of a stock model, in place: adds `score` and swaps the class.

    Call it after `from_pretrained`, so that the head is neither quantised nor created inside
    ZeRO-3's partitioned initialisation.

    Args:
        model: as loaded by `load_base`.
        spec: the head's shape.
        seed: of the head's initial weights.
    """
    head = RewardHead(model.config.get_text_config().hidden_size, spec, seed)
    model.add_module(HEAD, head.to(model.device))
    stock = type(model)
    # Under the stock class's name, which `save_pretrained` writes as architecture.
    attributes = {"__module__": stock.__module__}
    model.__class__ = type(stock.__name__, (RewardModelMixin, stock), attributes)
    return model


def without_adapter(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Returns the model inside a PEFT model (its layers keep the adapter), or itself."""
    return cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)


def has_head(model: PreTrainedModel | PeftModel) -> bool:
    """Returns whether the model carries a reward head."""
    return HEAD in dict(without_adapter(model).named_children())


def head_of(model: PreTrainedModel | PeftModel) -> RewardHead:
    """Returns the active head, the trained copy where PEFT keeps one."""
    head_module = without_adapter(model).get_submodule(HEAD)
    if isinstance(head_module, RewardHead):
        return head_module
    return cast(RewardHead, head_module.get_submodule("modules_to_save.default"))
