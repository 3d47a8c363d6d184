"""The self-check finds each fault in a model that has it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SOME_FAMILIES, make_tiny, save_tiny

import medrm.models.prefix_sharing.attention as attention_module
import medrm.models.prefix_sharing.kv_cache as cache_module
import medrm.models.reward_model as reward_module
from medrm.config.options import ModelOptions
from medrm.errors import ConfigError
from medrm.files import PHANTOM_BASE
from medrm.models.backbone import tower_of
from medrm.models.base_model import load_base
from medrm.models.prefix_sharing.attention import shares_prefix
from medrm.models.prefix_sharing.kv_cache import CachedPrefix, shares_cache
from medrm.models.processors import load_processor
from medrm.scorer import self_check
from medrm.scorer.check_conditions import check_conditions
from medrm.scorer.noise_rows import NoiseRows
from medrm.scorer.proof_cache import check_loaded
from medrm.scorer.self_check import prove


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", SOME_FAMILIES)
def test_every_family_passes(family: str, dtype: torch.dtype) -> None:
    model, processor = make_tiny(family)
    model.to(dtype).train()
    generator_state = torch.get_rng_state()
    proof = prove(model, processor)
    assert proof.sharing_problem is None
    assert (proof.cache_problem is None) == (family not in ("gemma3", "mllama"))
    assert max(proof.differences.values()) <= proof.tolerance
    if dtype == torch.float32:
        assert max(proof.differences.values()) < 1e-6
    assert proof.reward_token == "\n"
    assert model.training
    assert torch.equal(torch.get_rng_state(), generator_state)
    assert "forward" not in vars(tower_of(model))


@pytest.mark.parametrize("quantisation", ["load_in_4bit", "load_in_8bit"])
def test_quantised_weights_round_as_bf16(quantisation: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    folder = str(save_tiny("qwen2_5_vl", tmp_path / "base", hidden=64))
    options: Any = {quantisation: True, "dtype": "float32"}
    proof = prove(load_base(ModelOptions(folder, **options)), load_processor(folder))
    assert 2**-7 < proof.tolerance < 2**-5
    assert proof.sharing_problem is None


def test_a_template_decides_where_is_read() -> None:
    model, processor = make_tiny("llava")
    opening = "<|im_start|>assistant\n"
    template = processor.chat_template
    processor.chat_template = template.replace(opening, opening.replace("\n", ":"))
    assert prove(model, processor, "turn_end").reward_token == "\n"
    assert prove(model, processor, "generation_prompt").reward_token == ":"


def test_pixels_come_in_the_precision_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Towers of some types do not convert them."""
    model, processor = make_tiny("llava")
    model.to(torch.bfloat16)
    tower = tower_of(model)
    tower.register_forward_pre_hook(lambda _, inputs: assert_precision(inputs[0]))
    prove(model, processor)


def assert_precision(pixels: torch.Tensor) -> None:
    assert pixels.dtype == torch.bfloat16


def test_a_tower_that_joins_images_is_refused() -> None:
    """As one does whose attention runs over all images of a batch; in bf16 it shows as well."""
    for dtype in (torch.float32, torch.bfloat16):
        model, processor = make_tiny("llava")
        projector = model.to(dtype).model.multi_modal_projector
        projector.register_forward_hook(lambda _, __, output: output + output.mean() / 4)
        with pytest.raises(ConfigError, match="other rows of the batch changes"):
            prove(model, processor)


def test_text_only_data_needs_no_image() -> None:
    model, processor = make_tiny("llava")
    for parameter in model.model.vision_tower.parameters():
        parameter.data.zero_()
    with pytest.raises(ConfigError, match="same features"):
        prove(model, processor)
    proof = prove(model, processor, images=False)
    assert proof.sharing_problem is None
    assert proof.cache_problem is None


class ChangedRows:
    """A processor whose rows are changed after it wrote them."""

    def __init__(self, processor: Any, last_token: int) -> None:
        self._processor, self._last_token = processor, last_token

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)

    def __call__(self, **inputs: Any) -> Any:
        batch = self._processor(**inputs)
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            ids[int(mask.nonzero().max())] = self._last_token
        return batch


def test_a_row_that_does_not_end_as_rendered_is_refused() -> None:
    model, processor = make_tiny("qwen2_5_vl")
    word = processor.tokenizer("a")["input_ids"][-1]
    with pytest.raises(ConfigError, match=r"read at 'a' \(token .* ends in '\\n'"):
        prove(model, ChangedRows(processor, word))


def test_a_state_that_ignores_the_last_word_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = make_tiny("qwen2_5_vl")
    monkeypatch.setattr(reward_module, "last_attended", lambda states, mask: states[:, 3])
    with pytest.raises(ConfigError, match="same whether the answer ends in 'big' or 'small'"):
        prove(model, processor)


def test_a_template_that_cuts_answers_is_refused() -> None:
    model, processor = make_tiny("llava")
    cut = "m['content'][0]['text'][:8]"
    template = processor.chat_template
    processor.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}<image>{{ m['content'][-1]['text'] }}"
        "{% else %}{{ " + cut + " }}{% endif %}{% endfor %}\n"
    )
    assert template != processor.chat_template
    with pytest.raises(ConfigError, match="template writes the whole answer"):
        prove(model, processor)


def changed_layer(model: Any, change: Any) -> None:
    """Lets a function change what the first decoder layer returns."""

    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        return change(output) if isinstance(output, torch.Tensor) else (change(output[0]),)

    model.model.language_model.layers[0].register_forward_hook(hook)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_see_each_other_are_refused(dtype: torch.dtype) -> None:
    """As a layer does that normalises over the batch."""
    model, processor = make_tiny("llava")
    changed_layer(model.to(dtype), lambda states: states - states.mean(dim=0, keepdim=True) / 4)
    with pytest.raises(ConfigError, match=r"(?s)other rows of the batch changes .* by .* explains"):
        prove(model, processor)


def test_numbers_that_depend_on_the_batch_size_are_refused() -> None:
    model, processor = make_tiny("llava")
    changed_layer(model, lambda states: states + len(states) / 100)
    with pytest.raises(ConfigError, match="by itself instead of in a batch changes"):
        prove(model, processor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_positions_that_count_padding_are_refused(dtype: torch.dtype) -> None:
    """As absolute positions do that ignore the mask."""
    model, processor = make_tiny("llava")
    table = torch.randn(4096, 32, generator=torch.Generator().manual_seed(0)) / 50
    changed_layer(model.to(dtype), lambda states: states + table[: states.shape[1]].to(states))
    with pytest.raises(ConfigError, match=r"padding on the left .* attn_implementation"):
        prove(model, processor)


def leaking(share: float) -> Any:
    """Returns a gathering of heads in which a share of each answer is that of all answers."""
    gather = attention_module._gather

    def leak(heads: Any, layout: Any) -> Any:
        prefix, branch = gather(heads, layout)
        return prefix, branch + share * branch.mean(dim=1, keepdim=True)

    return leak


@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 0.01), (torch.bfloat16, 0.1)])
def test_answers_that_see_each_other_are_separated(
    dtype: torch.dtype,
    share: float,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, processor = make_tiny("qwen2_5_vl")
    monkeypatch.setattr(attention_module, "_gather", leaking(share))
    with caplog.at_level("INFO", logger="medrm"):
        proof = check_loaded(model.to(dtype), processor, f"leaking {dtype}")
    assert "a shared prefix changes the states" in str(proof.sharing_problem)
    assert f"separate rows: {proof.sharing_problem}" in caplog.text
    assert not shares_prefix(model)
    assert not shares_cache(model)
    # In bf16 the leak is smaller than the rounding; it shows when another answer changes.
    assert (proof.differences["shared prefix"] > proof.tolerance) == (dtype == torch.float32)


def test_wrong_positions_of_branches_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = make_tiny("llava")
    positions = attention_module._positions
    monkeypatch.setattr(
        attention_module, "_positions", lambda *inputs: positions(*inputs).clamp(max=20)
    )
    proof = prove(model, processor)
    assert "a shared prefix changes the states" in str(proof.sharing_problem)
    assert proof.cache_problem is None


def test_a_window_that_branches_ignore_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real windows are longer than the rows of the check."""
    model, processor = make_tiny("gemma3")
    text = model.config.get_text_config()
    attention = model.get_submodule("model.language_model.layers.0.self_attn")
    text.sliding_window = attention.sliding_window = 512
    assert prove(model, processor).sharing_problem is None
    masks_of = attention_module.AttentionLayout.masks_of
    monkeypatch.setattr(
        attention_module.AttentionLayout,
        "masks_of",
        lambda layout, window, *rest: masks_of(layout, None, *rest),
    )
    assert "a shared prefix changes the states" in str(prove(model, processor).sharing_problem)
    assert (text.sliding_window, attention.sliding_window) == (512, 512)


def test_a_cache_that_is_not_exact_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, processor = make_tiny("llava")
    extend = CachedPrefix.extend

    def late(prefix: CachedPrefix, rows: Any) -> Any:
        prefix.next_positions = prefix.next_positions + 1
        return extend(prefix, rows)

    monkeypatch.setattr(CachedPrefix, "extend", late)
    with caplog.at_level("INFO", logger="medrm"):
        proof = check_loaded(model, processor, "late")
    assert proof.sharing_problem is None
    assert f"prompts are read whole: {proof.cache_problem}" in caplog.text
    assert shares_prefix(model)
    assert not shares_cache(model)


def test_what_raises_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = make_tiny("llava")

    def fail(*_: Any) -> None:
        raise NotImplementedError("no such cache")

    monkeypatch.setattr(CachedPrefix, "read", fail)
    proof = prove(model, processor)
    assert proof.sharing_problem is None
    assert "cannot be computed (NotImplementedError: no such cache)" in str(proof.cache_problem)


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("last_word_changed", "position"),
        ("others_changed", "other rows"),
        ("left_padded", "padding side"),
    ],
)
def test_a_model_that_raises_in_a_check_is_refused(
    method: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = make_tiny("llava")

    def fail(_: Any) -> None:
        raise RuntimeError("no such shape")

    monkeypatch.setattr(NoiseRows, method, fail)
    with pytest.raises(ConfigError, match=rf"\({name}\): RuntimeError: no such shape\. Give attn"):
        prove(model, processor)


def failing_once(model: Any) -> None:
    """Lets the first batch of one row be wrong."""
    batches = []

    def change(states: torch.Tensor) -> torch.Tensor:
        batches.append(states)
        return states * torch.rand_like(states) if len(batches) == 1 else states

    changed_layer(model, lambda states: change(states) if len(states) == 1 else states)


def test_a_fault_that_shows_once_is_excused_in_experts_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, processor = make_tiny("llava")
    failing_once(model)
    with pytest.raises(ConfigError, match="by itself instead of in a batch changes"):
        prove(model, processor, images=False)
    model, processor = make_tiny("llava")
    failing_once(model)
    monkeypatch.setattr(self_check, "_is_routed", lambda _: True)
    assert prove(model, processor, images=False).tolerance > 0


def test_a_tower_that_is_given_a_list_computes_each_image() -> None:
    model, _ = make_tiny("llava")
    tower = tower_of(model)
    pixels = torch.rand(2, 1, 3, 56, 56)
    with torch.no_grad():
        tower.forward = lambda images: torch.cat(images).mean(dim=(2, 3))
        expected = [tower([image]) for image in pixels]
    with check_conditions(model):
        for image, mean in zip(pixels, expected, strict=True):
            assert torch.equal(tower([image]), mean)


def test_what_is_written_into_a_towers_output_stays_there() -> None:
    model, _ = make_tiny("llava")
    tower = tower_of(model)
    calls = []

    def compute(image: torch.Tensor, scaled: bool = False) -> torch.Tensor:
        calls.append(scaled)
        return image * (2 if scaled else 1)

    tower.forward = compute
    with check_conditions(model):
        tower(torch.ones(3)).zero_()
        assert tower(torch.ones(3)).tolist() == [1, 1, 1]
        assert tower(torch.ones(3), scaled=True).tolist() == [2, 2, 2]
    assert calls == [False, True]


@pytest.mark.parametrize("family", ["gemma3", "mllama"])
def test_what_structure_would_allow_is_proven_all_the_same(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = make_tiny(family)
    reason = {"gemma3": "sliding window", "mllama": "cross-attention"}[family]
    assert reason in str(prove(model, processor).cache_problem)
    monkeypatch.setattr(cache_module, "cache_problem", lambda config: None)
    proof = prove(model, processor)
    assert proof.sharing_problem is None
    assert proof.cache_problem is not None


def test_the_weights_of_another_vocabulary_are_refused() -> None:
    model, processor = make_tiny("llava")
    model.resize_token_embeddings(40)
    with pytest.raises(ConfigError):
        prove(model, processor, images=False)


def test_the_proof_is_fast() -> None:
    model = load_base(ModelOptions(PHANTOM_BASE))
    processor = load_processor(PHANTOM_BASE)
    prove(model, processor)
    started = time.process_time()
    prove(model, processor)
    assert time.process_time() - started < 1.0
