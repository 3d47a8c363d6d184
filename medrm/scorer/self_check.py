"""What is proven of a model as it was loaded, on synthetic images and a few words.

The states at which the rewards of three rows (`noise_rows.py`) are read, R [rows, H], are computed
as training and scoring compute them, and once more in every way that must not matter. A difference
is relative, the largest ||R' - R|| / ||R|| of a row; what the precision's rounding explains is
allowed.

    images     another image changes the states (`vision_tower.py`)
    position   the last token of the rendered text is read, and the answer's last word changes R
    padding    its side, what stands in it, and what else is in the batch leave R as it is
    sharing    a shared prefix gives R, and no answer sees another
    cache      a prefix continued from the key-value cache gives R

Where one of the first three fails, numbers would be wrong, and the model is refused. Without the
fourth the answers of a case are separate rows, without the fifth prompts are read whole.

Shape legend: rows = one for each answer, case by case; H hidden size; L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from peft import PeftModel
from torch import Tensor
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

from medrm.chat_template import RewardTemplate
from medrm.errors import FOREIGN_ERRORS, ConfigError, MedrmError, first_line
from medrm.models.backbone import last_attended
from medrm.models.families import family_of
from medrm.models.prefix_sharing.attention import shares_prefix
from medrm.models.prefix_sharing.batch import sharing_problem
from medrm.models.prefix_sharing.kv_cache import (
    cache_problem,
    caches_answers,
    read_branches,
    shares_cache,
)
from medrm.models.reward_model import RewardModelMixin, without_adapter
from medrm.models.vision_tower import check_image_reaches
from medrm.scorer.check_conditions import check_conditions
from medrm.scorer.collator import Collator
from medrm.scorer.noise_rows import LAST_WORD, NoiseRows

_ATTEMPTS = 3
"""Now and then rounding sends a token to another expert; a fault shows every time."""

_SMALLEST_CHANGE = 1e-6
"""Relative; rows of the same tokens in batches of the same shape differ by less on any device."""

_TF32_EPS = 2**-10


@dataclass(frozen=True)
class Proof:
    """What was found of a model.

    Attributes:
        tolerance: largest relative difference that rounding explains.
        differences: relative differences, by what was done otherwise.
        reward_token: text of the token at which the reward is read.
        sharing_problem: why the answers of a case run as separate rows; None: they share a prefix.
        cache_problem: why prompts are read whole; None: they continue a cached prefix.
        images: whether images were looked at, which then reach the hidden states.
    """

    tolerance: float
    differences: Mapping[str, float]
    reward_token: str
    sharing_problem: str | None
    cache_problem: str | None
    images: bool

    @property
    def lines(self) -> list[str]:
        """What people are told."""
        unwanted = max(self.differences[name] for name in _REQUIRED)
        shared, cached = (
            f"{name}: not used: {problem}"
            if problem is not None
            else f"{name}: gives the numbers of separate rows, within {self.differences[name]:.0e}"
            for name, problem in (
                ("shared prefix", self.sharing_problem),
                ("cached prefix", self.cache_problem),
            )
        )
        reach = "images reach the hidden states; " if self.images else ""
        return [
            f"{reach}the reward is read at {self.reward_token!r}, where the rendered text ends, "
            "and depends on the answer's last word",
            f"padding and other rows of a batch change a state by at most {unwanted:.0e} (rounding "
            f"explains {self.tolerance:.0e})",
            shared,
            cached,
        ]


def tolerance_of(model: PreTrainedModel) -> float:
    """Returns the largest relative difference that a model's rounding explains.

    Each layer rounds the outputs of its two sublayers; independent errors add up as their root. In
    fp32 the sums over thousands of products are rounded as well, in bf16 and fp16 they are fp32.
    Quantised weights are multiplied in bf16, fp32 ones in TF32 where a GPU is told to.
    """
    layers = int(model.config.get_text_config().num_hidden_layers)
    eps, factor = torch.finfo(model.dtype).eps, 1
    if getattr(model, "is_quantized", False):
        eps = torch.finfo(torch.bfloat16).eps
    elif model.dtype == torch.float32:
        exact = model.device.type == "cpu" or torch.get_float32_matmul_precision() == "highest"
        eps, factor = (eps, 64) if exact else (_TF32_EPS, 1)
    return float(factor * eps * (2 * layers) ** 0.5)


def _is_routed(model: PreTrainedModel) -> bool:
    """Returns whether a row's rounding depends on the tokens of others, at equal shapes.

    Experts are given as many tokens as the router sends them; int8 products treat the outliers of
    all rows alike.
    """
    text = vars(model.config.get_text_config())
    experts = (count for name, count in text.items() if "experts" in name)
    routed = any(isinstance(count, int) and count > 1 for count in experts)
    return routed or bool(getattr(model, "is_loaded_in_8bit", False))


def prove(
    model: PreTrainedModel | PeftModel,
    processor: ProcessorMixin,
    template: RewardTemplate = "generation_prompt",
    images: bool = True,
) -> Proof:
    """Returns what is proven of a model.

    Args:
        model: a stock or a reward model, with or without an adapter.
        processor: of the model.
        template: what follows the answer before the reward is read.
        images: whether the data has images.

    Raises:
        ConfigError: images do not reach the states, the reward is not read at the rendered text's
            end, or padding or other rows change it; says by how much.
    """
    base = without_adapter(model)
    images = images and family_of(base.config).parts.takes_images
    if images:
        check_image_reaches(model, processor)
    with check_conditions(base):
        with _refused(
            f"{_name(base)} cannot compute what its processor gives",
            "Check that processor and weights are of one checkpoint.",
        ):
            subject = _Subject(base, Collator(processor, template), images)
        token = subject.check_position()
        differences = {
            name: subject.check(name, compare)
            for name, compare in (
                ("other rows", _Subject.beside_others),
                ("batch", _Subject.alone),
                ("padding side", _Subject.left_padded),
            )
        }
        sharing: str | None = sharing_problem(base.config) or "shared_prefix is off"
        cache: str | None = cache_problem(base.config) or "shared_prefix is off"
        if shares_prefix(base):
            sharing = subject.problem("shared prefix", _Subject.shared, differences)
        if shares_cache(base):
            cache = subject.problem("cached prefix", _Subject.cached, differences)
        elif caches_answers(base):
            cache = subject.problem("cached prefix", _Subject.shared, differences)
    return Proof(subject.tolerance, differences, token, sharing, cache, images)


@contextmanager
def _refused(finding: str, remedy: str) -> Iterator[None]:
    """Says what of a model cannot be computed, in place of what its code raises."""
    try:
        yield
    except (MedrmError, torch.OutOfMemoryError):
        raise
    except FOREIGN_ERRORS as error:
        raise ConfigError(
            f"{finding}: {type(error).__name__}: {first_line(error).rstrip('.')}. {remedy}"
        ) from error


def _name(model: PreTrainedModel) -> str:
    return f"{family_of(model.config).name} ({type(model).__name__})"


class Difference(NamedTuple):
    """A relative difference of states, and the largest that rounding explains."""

    size: float
    allowed: float

    @property
    def excess(self) -> float:
        """Above 1 it is more than rounding."""
        return self.size / self.allowed


def _change(states: Tensor, reference: Tensor) -> float:
    """Returns the largest relative difference of a row, infinite where numbers are not finite."""
    difference = (states - reference).norm(dim=-1) / reference.norm(dim=-1)
    return float(difference.nan_to_num(nan=float("inf")).max())


class _Subject:
    """A model with its synthetic rows, and their states computed in several ways.

    Attributes:
        tolerance: largest relative difference that rounding explains.
        inputs: the rows.
        reference: R [rows, H], fp32.
    """

    def __init__(self, model: PreTrainedModel, collator: Collator, images: bool) -> None:
        self._model, self._collator, self._images = model, collator, images
        self.tolerance = tolerance_of(model)
        self._draw(seed=0)

    def _draw(self, seed: int) -> None:
        """Makes the rows, with other images for another seed, and computes R."""
        self.inputs = NoiseRows(self._collator, self._images, seed)
        self.reference = self._states(self.inputs.features)

    def _states(self, features: BatchFeature) -> Tensor:
        """Returns the states at which the rewards are read, [answers, H] in fp32."""
        reward_model = cast(Any, self._model)
        inputs = features.to(self._model.device)
        return RewardModelMixin.reward_states(reward_model, **inputs)[:, 0].float()

    def check(self, name: str, compare: Compare) -> float:
        """Returns a relative difference.

        Raises:
            ConfigError: it is more than rounding explains, or cannot be computed.
        """
        with self._computed(name):
            difference = self._smallest(compare)
        if difference.excess > 1:
            raise ConfigError(
                self._refusal(f"{_REQUIRED[name]} {self._in_words(difference)}. {_REMEDY}")
            )
        return difference.size

    def problem(self, name: str, compare: Compare, differences: dict[str, float]) -> str | None:
        """Returns why a way of computing is not exact; notes the relative difference if it ran."""
        try:
            difference = self._smallest(compare)
        except torch.OutOfMemoryError:
            raise
        except FOREIGN_ERRORS as error:
            return f"a {name} cannot be computed ({type(error).__name__}: {first_line(error)})"
        differences[name] = difference.size
        return None if difference.excess <= 1 else f"a {name} {self._in_words(difference)}"

    def _smallest(self, compare: Compare) -> Difference:
        """Returns the difference; with experts the smallest of a few draws if it is too large."""
        difference = compare(self)
        for seed in range(1, _ATTEMPTS if _is_routed(self._model) else 1):
            if difference.excess <= 1:
                break
            self._draw(seed)
            difference = min(difference, compare(self), key=lambda drawn: drawn.excess)
        return difference

    def _computed(self, name: str) -> AbstractContextManager[None]:
        """Refuses a model that raises where its states are computed in the way of that name."""
        return _refused(self._refusal(f"its states cannot be computed ({name})"), _ALTERNATIVES)

    def _in_words(self, difference: Difference) -> str:
        return (
            f"changes the states that rewards are read from by {difference.size:.1e} of their "
            f"size, where the rounding of {self._precision} explains {difference.allowed:.1e}"
        )

    @property
    def _precision(self) -> str:
        return str(self._model.dtype).removeprefix("torch.")

    def _refusal(self, finding: str) -> str:
        return f"{_name(self._model)} fails medrm's self-check: {finding}"

    def check_position(self) -> str:
        """Returns the text of the token at which the rewards are read.

        Raises:
            ConfigError: it is not the last one of the rendered text, or what is read there does not
                depend on the answer's last word, or cannot be computed.
        """
        ids, mask = self.inputs.features["input_ids"], self.inputs.mask
        indices = torch.arange(ids.shape[1], device=mask.device).expand(ids.shape)
        read = last_attended(indices[..., None], mask)[:, 0].tolist()
        decode = self._collator.processor.tokenizer.decode
        expected = [row_ids[-1] for case_ids in self.inputs.ids for row_ids in case_ids]
        for row, (index, token) in enumerate(zip(read, expected, strict=True)):
            if int(ids[row, index]) != token:
                raise ConfigError(
                    self._refusal(
                        f"the reward would be read at {decode([int(ids[row, index])])!r} (token "
                        f"{index + 1} of {int(mask[row].sum())}), but the rendered text ends in "
                        f"{decode([token])!r}. The processor cuts or changes what the chat "
                        "template wrote; use processor and tokenizer of this checkpoint, as it "
                        "ships them."
                    )
                )
        with self._computed("position"):
            changed = self._states(self.inputs.last_word_changed())
        if _change(changed[:1], self.reference[:1]) <= _SMALLEST_CHANGE:
            raise ConfigError(
                self._refusal(
                    f"the state at {decode(expected[:1])!r}, from which the reward is read, is the "
                    f"same whether the answer ends in {' or '.join(map(repr, LAST_WORD))}. Check "
                    "that the chat template writes the whole answer and that the checkpoint's "
                    "weights are whole."
                )
            )
        return str(decode(expected[:1]))

    def left_padded(self) -> Difference:
        """Returns the difference that padding on the left makes."""
        # Padding may shift positions: their sines are rounded otherwise, in the weights' precision,
        # and before that the angle of position p by p x eps / 2.
        angles = self.inputs.mask.shape[1] * torch.finfo(torch.float32).eps
        states = self._states(self.inputs.left_padded())
        return Difference(_change(states, self.reference), 2 * self.tolerance + angles)

    def alone(self) -> Difference:
        """Returns the difference of the last row computed by itself, without padding."""
        states = self._states(self._collator.encode(self.inputs.rows[-1]))
        return Difference(_change(states, self.reference[-1:]), self.tolerance)

    def beside_others(self) -> Difference:
        """Returns the difference of the last row where the padding and the other rows change."""
        states = self._states(self.inputs.others_changed())
        return Difference(_change(states[-1:], self.reference[-1:]), self._at_equal_shapes)

    def shared(self) -> Difference:
        """Returns the difference that shared prefixes make, or one answer makes to the others."""
        states, changed = map(self._states, self.inputs.shared())
        return max(
            Difference(_change(states, self.reference), self.tolerance),
            Difference(_change(changed[1:], states[1:]), self._at_equal_shapes),
            key=lambda difference: difference.excess,
        )

    def cached(self) -> Difference:
        """Returns the difference that continuing a cached prefix makes."""
        features = self._collator.encode([rows[-1] for rows in self.inputs.rows])
        encoded = [case_ids[-1] for case_ids in self.inputs.ids]
        groups = [[case_ids] for case_ids in self.inputs.ids]
        _, states = read_branches(self._model, features.to(self._model.device), encoded, groups)
        return Difference(_change(states.float(), self.reference), self.tolerance)

    @property
    def _at_equal_shapes(self) -> float:
        """What rounding explains where a row's own tokens and all shapes are the same."""
        return self.tolerance if _is_routed(self._model) else _SMALLEST_CHANGE


Compare = Callable[[_Subject], Difference]

_ALTERNATIVES = (
    "Give attn_implementation sdpa or eager, another version of transformers, or a base whose "
    "positions follow the attention mask."
)

_REMEDY = f"Rewards would depend on how cases are batched. {_ALTERNATIVES}"

_REQUIRED = {
    "other rows": "what stands in the padding and in other rows of the batch",
    "batch": "computing an answer by itself instead of in a batch",
    "padding side": "padding on the left instead of the right",
}
"""What must change nothing, by the name of its difference."""
