"""The adapter to vLLM, against a stand-in: vLLM itself needs a GPU and is not run here.

`LLM` below has the signatures and the ways of failing that vLLM documents, and nothing more.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cases import broken_image, stored_image
from PIL import Image
from presentations import by_order
from safetensors.numpy import save_file
from tiny import make_tiny

from medrm.chat import PROMPTS
from medrm.data.images import decode
from medrm.errors import AdapterError, ConfigError
from medrm.models.vllm_rules import VllmAdapter, read_vllm_adapter
from medrm.schema import Case
from medrm.scorer.engines.base import Completion, Request, Sampling, call_seed
from medrm.scorer.engines.vllm_engine import VllmEngine
from medrm.scorer.readouts.pair_judge import Judge

GREEDY = Sampling()
USAGE = {"prompt_tokens": 7, "completion_tokens": 2}
LANGUAGE = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight"
VISION = "base_model.model.model.visual.blocks.0.attn.qkv.lora_A.weight"


class SamplingParams:
    def __init__(self, *, temperature: float = 1.0, max_tokens: int = 16, seed: int | None = None):
        self.temperature, self.max_tokens, self.seed = temperature, max_tokens, seed


class LoRARequest:
    def __init__(self, lora_name: str, lora_int_id: int, lora_path: str) -> None:
        self.lora_name, self.lora_int_id, self.lora_path = lora_name, lora_int_id, lora_path


class LLM:
    """Replies with the last text, and refuses a batch for one text that says how."""

    made: dict[str, Any]
    batches: list[list[Any]]
    template: tuple[str | None, dict[str, Any] | None] | None
    calls: int

    def __init__(
        self,
        model: str,
        *,
        trust_remote_code: bool = False,
        dtype: str = "auto",
        revision: str | None = None,
        seed: int | None = None,
        mm_processor_kwargs: dict[str, Any] | None = None,
        **engine: Any,
    ) -> None:
        accepted = {"limit_mm_per_prompt", "max_model_len", "enable_lora", "max_lora_rank"}
        if sys.modules["vllm"].__version__ >= "0.33":
            accepted.add("enable_tower_connector_lora")
        assert engine.keys() <= accepted
        LLM.made = {
            "model": (model, revision, dtype, trust_remote_code),
            "seed": seed,
            "pixels": mm_processor_kwargs,
            **engine,
        }
        LLM.batches = []
        LLM.calls = 0
        LLM.template = None

    def chat(
        self,
        messages: list[list[dict[str, Any]]],
        sampling_params: list[SamplingParams] | None = None,
        use_tqdm: bool = True,
        lora_request: LoRARequest | None = None,
        chat_template: str | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> list[SimpleNamespace]:
        LLM.template = (chat_template, chat_template_kwargs)
        LLM.calls += 1
        assert sampling_params is not None
        assert len(sampling_params) == len(messages)
        texts = [conversation[-1]["content"][-1]["text"] for conversation in messages]
        for text in texts:
            if "LONG" in text:
                raise ValueError(
                    "The decoder prompt (length 90) is longer than the maximum model length of 80. "
                    "Make sure that `max_model_len` is no smaller."
                )
            if "ODD" in text:
                raise ValueError("At most 1 image(s) may be provided in one prompt.")
        calls = zip(messages, sampling_params, strict=True)
        LLM.batches.append([(*call, use_tqdm, lora_request) for call in calls])
        return [
            SimpleNamespace(
                prompt_token_ids=[1] * 7,
                outputs=[
                    SimpleNamespace(text=f"re: {text}", finish_reason="stop", token_ids=[1, 2])
                ],
            )
            for text in texts
        ]


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Callable[..., VllmEngine]:
    """Builds engines on the stand-in."""
    modules = {
        "vllm": {"LLM": LLM, "SamplingParams": SamplingParams, "__version__": "0"},
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": LoRARequest},
    }
    for name, content in modules.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    _, processor = make_tiny("qwen2_vl")

    def built(*arguments: Any, template: str | None = None, **options: Any) -> VllmEngine:
        processor.chat_template = template or processor.chat_template
        return VllmEngine("a-base", processor, *arguments, **options)

    return built


def adapter(folder: Path, names: tuple[str, ...] = (LANGUAGE,), **config: Any) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": 16, **config}))
    save_file({name: np.zeros((1, 1)) for name in names}, folder / "adapter_model.safetensors")
    return folder


def ask(text: str, *images: Any) -> Request:
    case = Case(text, images, text, ("a", "b"))
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "A role."}]},
        {
            "role": "user",
            "content": [*({"type": "image"} for _ in images), {"type": "text", "text": text}],
        },
    ]
    return Request(case, "forward", None, 0, messages, ("overall",))


def test_sends_images_texts_and_sampling_in_order(build: Callable[..., VllmEngine]) -> None:
    loaded: dict[str, Any] = {"revision": "a1", "dtype": "bfloat16", "trust_remote_code": True}
    limits: dict[str, Any] = {"max_model_len": 4096, "mm_processor_kwargs": {"max_pixels": 99}}
    engine = build(limit_mm_per_prompt={"image": 2}, batch_requests=4, **loaded, **limits)
    assert LLM.made == {
        "model": ("a-base", "a1", "bfloat16", True),
        "seed": 0,
        "pixels": {"max_pixels": 99},
        "limit_mm_per_prompt": {"image": 2},
        "max_model_len": 4096,
    }
    requests = [ask(f"q{n}", stored_image(n), stored_image(n + 1)) for n in range(10)]
    sampling = Sampling(temperature=0.7, max_new_tokens=33, seed=5)
    found = list(engine.complete(iter(requests), sampling))
    assert found == [
        Completion(f"re: q{n}", "stop", "ok", None, request.digest, USAGE)
        for n, request in enumerate(requests)
    ]
    assert LLM.template == (make_tiny("qwen2_vl")[1].chat_template, {})
    assert [len(batch) for batch in LLM.batches] == [4, 4, 2]
    for request, call in zip(requests, chain(*LLM.batches), strict=True):
        (system, user), params, use_tqdm, lora = call
        assert system == request.messages[0]
        first, second, text = user["content"]
        for part, ref in zip((first, second), request.case.images, strict=True):
            assert part["type"] == "image_pil"
            assert isinstance(part["image_pil"], Image.Image)
            assert part["image_pil"].tobytes() == decode(ref).tobytes()
        assert text == request.messages[1]["content"][-1]
        assert (params.temperature, params.max_tokens) == (0.7, 33)
        assert params.seed == call_seed(request, sampling)
        assert (use_tqdm, lora) == (False, None)


def test_a_thinking_that_the_template_opens_begins_the_text(
    build: Callable[..., VllmEngine],
) -> None:
    opening = "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    for options, text in (({}, "<think>re: q"), ({"thinks": False}, "re: q")):
        (reply,) = build(template=opening, **options).complete([ask("q")], GREEDY)
        assert reply.text == text.replace("q", "A role.\n\nq")


def test_a_refused_prompt_costs_nobody_else_a_reply(build: Callable[..., VllmEngine]) -> None:
    texts = [f"q{number}" for number in range(64)]
    texts[3], texts[51] = "LONG", "ODD"
    found = list(build().complete([ask(text) for text in texts], GREEDY))
    assert [each.text for each in found] == [
        None if text in ("LONG", "ODD") else f"re: {text}" for text in texts
    ]
    assert (found[3].state, found[51].state) == ("too_long", "error")
    assert "longer than the maximum" in str(found[3].reason)
    assert "At most 1 image" in str(found[51].reason)
    assert LLM.calls <= 2 * 2 * 6 + 1


def test_a_system_turn_that_the_template_refuses_opens_the_users(
    build: Callable[..., VllmEngine],
) -> None:
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('none') }}{% endif %}"
    (found,) = build(template=refusing).complete([ask("q", stored_image(1))], GREEDY)
    assert found.text == "re: A role.\n\nq"
    (((user,), *_),) = LLM.batches[0]
    assert [part["type"] for part in user["content"]] == ["image_pil", "text"]


def test_a_bad_image_is_not_sent(build: Callable[..., VllmEngine]) -> None:
    requests = [ask("a", stored_image(1)), ask("b", broken_image()), ask("c")]
    found = list(build().complete(requests, GREEDY))
    assert [each.state for each in found] == ["ok", "bad_image", "ok"]
    assert "broken" in str(found[1].reason)
    assert [each.prompt_digest for each in found] == [request.digest for request in requests]
    (alone,) = build().complete([ask("b", broken_image())], GREEDY)
    assert alone.state == "bad_image"


@pytest.mark.parametrize(
    ("config", "rank"),
    [({"r": 16}, 16), ({"r": 20}, 32), ({"r": 8, "rank_pattern": {"q_proj": 100}}, 128)],
)
def test_an_adapter_is_loaded_as_it_is(
    config: dict[str, Any], rank: int, build: Callable[..., VllmEngine], tmp_path: Path
) -> None:
    folder = adapter(tmp_path / "judge", **config)
    engine = build(folder)
    assert (LLM.made["enable_lora"], LLM.made["max_lora_rank"]) == (True, rank)
    list(engine.complete([ask("q")], GREEDY))
    lora = LLM.batches[0][0][3]
    assert (lora.lora_name, lora.lora_int_id, lora.lora_path) == ("judge", 1, str(folder))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "lm_head"),
        ({"r": 1024}, "1024"),
        ({"names": (LANGUAGE, VISION)}, "vision tower"),
    ],
)
def test_an_adapter_that_vllm_would_not_run_whole_is_refused(
    config: dict[str, Any], message: str, build: Callable[..., VllmEngine], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        build(adapter(tmp_path / "judge", **config))


def test_a_vision_adapter_runs_from_the_version_that_takes_it_on(
    build: Callable[..., VllmEngine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = adapter(tmp_path / "judge", names=(LANGUAGE, VISION))
    for version in ("0.12.0", "0.32.1"):
        monkeypatch.setattr(sys.modules["vllm"], "__version__", version)
        with pytest.raises(ConfigError, match=f"needs vLLM >= 0.33; this is {version}"):
            build(folder)
    monkeypatch.setattr(sys.modules["vllm"], "__version__", "0.33.0")
    build(folder)
    assert LLM.made["enable_tower_connector_lora"] is True
    build(adapter(tmp_path / "language"))
    assert "enable_tower_connector_lora" not in LLM.made


@pytest.mark.parametrize(
    ("config", "head", "message"),
    [
        ({}, {"score.layers.0.weight": (6, 4), "score.layers.2.weight": (2, 6)}, "one linear"),
        ({}, {"score.weight": (4,)}, "one linear"),
        ({}, {"score.weight": (2, 4), "score.bias": (2,)}, "one linear"),
        ({"bias": "lora_only"}, {}, "biases"),
        ({"init_lora_weights": "pissa_niter_4"}, {}, "pissa"),
        ({"target_parameters": ["mlp.gate.weight"]}, {}, "routers"),
        ({"modules_to_save": ["score", "embed_tokens"]}, {}, "embed_tokens"),
    ],
)
def test_what_the_loader_of_vllm_refuses_is_known(
    config: dict[str, Any], head: dict[str, tuple[int, ...]], message: str, tmp_path: Path
) -> None:
    folder = adapter(tmp_path / "adapter", **config)
    tensors = {f"base_model.model.{name}": np.zeros(shape) for name, shape in head.items()}
    save_file({LANGUAGE: np.zeros((1, 1)), **tensors}, folder / "adapter_model.safetensors")
    (problem,) = read_vllm_adapter(folder).problems
    assert message in problem


def test_a_linear_head_is_no_problem(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "adapter", modules_to_save=["score"])
    tensors = {LANGUAGE: np.zeros((1, 1)), "base_model.model.score.weight": np.zeros((6, 4))}
    save_file(tensors, folder / "adapter_model.safetensors")
    assert read_vllm_adapter(folder) == VllmAdapter(16, False, 6, ())


def test_a_folder_that_is_no_adapter_is_refused(
    build: Callable[..., VllmEngine], tmp_path: Path
) -> None:
    with pytest.raises(AdapterError, match="no LoRA adapter"):
        build(tmp_path)
    (adapter(tmp_path / "torn") / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(AdapterError, match="no LoRA adapter"):
        build(tmp_path / "torn")


def test_a_judge_over_it_keeps_data_out_of_the_markup(build: Callable[..., VllmEngine]) -> None:
    engine = build()
    case = Case("one", (), "Q <|im_end|>?", ("a <|image_pad|>", "b"))
    judge = Judge(engine, PROMPTS["json"], ("overall",))
    for scored in by_order(judge, [case]):
        text = scored.responses[0].text or ""
        assert "<|im_end|>" not in text
        assert "<|image_pad|>" not in text
        assert "Q < |im_end|>?" in text


def test_vllm_missing_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError, match=r'pip install "medrm\[vllm\]"'):
        VllmEngine("a-base", make_tiny("qwen2_vl")[1])
