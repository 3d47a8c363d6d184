"""Deterministic scoring in bf16: nothing else that is scored changes a bit."""

from __future__ import annotations

import dataclasses
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from quick import quick
from scorer.cases import broken_image, make_case
from tiny import SOME_FAMILIES, make_tiny, save_tiny

from medrm.chat import PROMPTS
from medrm.config.options import AdapterOptions, ModelOptions
from medrm.errors import ConfigError
from medrm.models.adapter import save_adapter
from medrm.models.adapter_config import AdapterConfig, new_adapter_config
from medrm.models.base_model import load_base
from medrm.models.prefix_sharing.attention import (
    disable_prefix_sharing,
    enable_prefix_sharing,
    shares_prefix,
)
from medrm.models.processors import load_processor
from medrm.models.reward_model import HeadSpec, attach_head
from medrm.models.trainable import add_adapter
from medrm.schema import Case, Response
from medrm.scorer import Scorer
from medrm.scorer.collator import Collator
from medrm.scorer.determinism import fixed_kernels
from medrm.scorer.engines.base import Sampling
from medrm.scorer.engines.transformers_engine import TransformersEngine
from medrm.scorer.open import load
from medrm.scorer.readouts.answer_rewards import ImplicitReward, Likelihood, RewardModel
from medrm.scorer.readouts.pair_judge import Judge
from medrm.scorer.readouts.probability_readout import ConstrainedJson, VerdictProbability

DIMENSIONS = ("accuracy", "overall")
WORKER = Path(__file__).parent / "deterministic_worker.py"


def cases_of(answers: int) -> list[Case]:
    """Cases of the same question length, different images and numbers of answers."""
    sizes = ([(60, 40)], [(28, 56)], [], [(90, 60), (28, 28)])
    return [
        make_case(number, answers=answers + (number % 2 if answers > 2 else 0), sizes=tuple(pixels))
        for number, pixels in enumerate(sizes * 2)
    ]


def low_precision(family: str) -> tuple[Any, Any]:
    model, processor = make_tiny(family)
    return model.to(torch.bfloat16), processor


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("qwen2_5_vl", tmp_path_factory.mktemp("base") / "base")


def contract_of(model: Any, processor: Any, base: Path, readout: str) -> AdapterConfig:
    options = ModelOptions(model_name_or_path=str(base))
    objective = "bradley_terry" if readout == "reward" else "judge_dpo"
    contract = new_adapter_config(model, processor, options, objective, readout, DIMENSIONS)
    return dataclasses.replace(contract, implicit_beta=0.1)


Open = Callable[..., Scorer]
"""Opens a scorer of a model and its processor; takes `batch_rows` and `deterministic`."""


def openers(model: Any, processor: Any, base: Path) -> dict[str, Open]:
    """Returns how each readout is opened on a model in memory."""
    adapted = add_adapter(make_tiny("qwen2_5_vl")[0].to(torch.bfloat16), AdapterOptions())
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.05, generator=torch.Generator().manual_seed(0))
    implicit = contract_of(adapted, processor, base, "implicit_reward")
    head = attach_head(make_tiny("qwen2_5_vl")[0].to(torch.bfloat16), HeadSpec(DIMENSIONS), 1)
    asked = {"dimensions": DIMENSIONS}
    each = PROMPTS["json_per_dimension"]

    def write(**options: Any) -> Judge:
        engine = TransformersEngine(model, processor, **options)
        return Judge(engine, PROMPTS["json"], DIMENSIONS, sampling=Sampling(max_new_tokens=8))

    return {
        "reward": partial(
            RewardModel, head, processor, contract_of(head, processor, base, "reward")
        ),
        "implicit": partial(ImplicitReward, adapted, processor, implicit),
        "likelihood": partial(Likelihood, model, processor, **asked),
        "probability": partial(VerdictProbability, model, processor, **asked),
        "skeleton": partial(ConstrainedJson, model, processor, each, **asked),
        "generate": write,
    }


READOUTS = ("reward", "implicit", "likelihood", "probability", "skeleton", "generate")


def model_of(scorer: Any) -> Any:
    """The stock model that a scorer reads, whatever is around it."""
    holder = getattr(scorer, "engine", scorer)
    model = getattr(holder, "_model", None) or holder.model
    return getattr(model, "get_base_model", lambda: model)()


def said(scorer: Scorer, cases: Iterable[Case]) -> dict[str, list[Response]]:
    responses: dict[str, list[Response]] = {}
    for response in scorer.respond(cases):
        responses.setdefault(response.case_id, []).append(response)
    return responses


@pytest.mark.parametrize("readout", quick("reward", "generate", of=READOUTS))
def test_nothing_else_changes_a_bit(readout: str, base: Path) -> None:
    model, processor = low_precision("qwen2_5_vl")
    opened = openers(model, processor, base)[readout]
    cases = cases_of(3 if readout in ("reward", "implicit", "likelihood") else 2)
    alone = opened(deterministic=True)
    reference = {case.case_id: said(alone, [case])[case.case_id] for case in cases}
    assert alone.lookahead is None
    assert (alone.settings["deterministic"], alone.settings["shared_prefix"]) == (True, False)
    stock = model_of(alone)
    batched = []
    for switch in (enable_prefix_sharing, disable_prefix_sharing):
        switch(stock)
        for rows in (1, 4, 32):
            shuffled = random.Random(rows).sample(cases, len(cases))
            fixed = opened(batch_rows=rows, deterministic=True)
            assert said(fixed, shuffled) == reference
            assert fixed.settings == alone.settings
            batched.append(said(opened(batch_rows=rows), shuffled))
        assert shares_prefix(stock) == (switch is enable_prefix_sharing)
    assert not torch.are_deterministic_algorithms_enabled()
    if readout != "generate":  # its letters move only where two are equally probable
        assert any(responses != reference for responses in batched)


@pytest.mark.parametrize("family", SOME_FAMILIES)
def test_neither_padding_side_nor_family_matters(family: str, base: Path) -> None:
    model, processor = low_precision(family)
    attach_head(model, HeadSpec(DIMENSIONS), seed=1)
    contract = contract_of(model, processor, base, "reward")
    cases = cases_of(2)
    reference = said(RewardModel(model, processor, contract, deterministic=True), cases)
    fixed = RewardModel(model, processor, contract, batch_rows=4, deterministic=True)
    collator = Collator(processor, contract.reward_template, padding_side="left")
    fixed._runner = dataclasses.replace(fixed._runner, collator=collator)
    assert said(fixed, cases[::-1]) == reference


def test_an_answer_is_the_same_among_others(base: Path) -> None:
    model, processor = low_precision("qwen2_5_vl")
    attach_head(model, HeadSpec(DIMENSIONS), seed=1)
    contract = contract_of(model, processor, base, "reward")
    scorer = RewardModel(model, processor, contract, deterministic=True)
    case = make_case(1, answers=4)
    rewards = scorer.score(case.images, case.question, case.answers)
    for number, answer in enumerate(case.answers):
        assert (scorer.score(case.images, case.question, [answer]) == rewards[number]).all()


def test_what_cannot_be_read_has_its_state(base: Path) -> None:
    model, processor = low_precision("qwen2_5_vl")
    attach_head(model, HeadSpec(DIMENSIONS), seed=1)
    contract = contract_of(model, processor, base, "reward")
    short, long = make_case(0), make_case(1, answers=2, sizes=())
    broken = dataclasses.replace(make_case(3), images=(broken_image(),))
    long = dataclasses.replace(long, answers=("lungs", "lungs " * 200))
    limited = dataclasses.replace(contract, max_length=150)
    cases = [short, long, broken, make_case(4)]
    scorers = [RewardModel(model, processor, limited, deterministic=fixed) for fixed in (0, 1)]
    default, fixed = (said(scorer, cases) for scorer in scorers)
    states = [fixed[case.case_id][0].state for case in cases]
    assert states == ["ok", "too_long", "bad_image", "ok"]
    assert list(fixed) == [case.case_id for case in cases]
    for name, (response,) in fixed.items():
        assert response.prompt_digest == default[name][0].prompt_digest
        assert response.state == default[name][0].state


def test_answers_that_see_each_other_are_one_batch_for_each_case(base: Path) -> None:
    model, processor = low_precision("qwen2_5_vl")
    attach_head(model, HeadSpec(DIMENSIONS), seed=1)
    enable_prefix_sharing(model)
    contract = contract_of(model, processor, base, "reward")
    contract = dataclasses.replace(contract, contextual_orders=2)
    cases = cases_of(3)
    scorers = [
        RewardModel(model, processor, contract, batch_rows=rows, deterministic=True)
        for rows in (1, 4, 32)
    ]
    reference = {case.case_id: said(scorers[0], [case])[case.case_id] for case in cases}
    assert scorers[0].settings["shared_prefix"]
    for scorer in scorers:
        assert said(scorer, cases[::-1]) == reference


def test_an_operation_without_such_a_kernel_is_named(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = low_precision("qwen2_5_vl")
    attach_head(model, HeadSpec(DIMENSIONS), seed=1)
    scorer = RewardModel(
        model, processor, contract_of(model, processor, base, "reward"), deterministic=True
    )

    def refuse(**_: Any) -> None:
        raise RuntimeError("cumsum_cuda does not have a deterministic implementation, but you set")

    monkeypatch.setattr(model, "forward", refuse)
    with pytest.raises(ConfigError, match="cannot be scored deterministically on cpu: cumsum_cuda"):
        scorer.score([], "What?", ["one"])
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("warn_only", [True, False])
def test_the_switches_of_torch_are_as_before(enabled: bool, warn_only: bool) -> None:
    model, _ = low_precision("qwen2_5_vl")
    torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
    try:
        with fixed_kernels(model, shares=False):
            assert torch.are_deterministic_algorithms_enabled()
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.are_deterministic_algorithms_enabled() == enabled
        assert torch.is_deterministic_algorithms_warn_only_enabled() == warn_only
    finally:
        torch.use_deterministic_algorithms(False)


def save_reward_model(base: Path, folder: Path) -> Path:
    """Saves a bf16 reward model of that base and returns its folder."""
    options = ModelOptions(model_name_or_path=str(base), dtype="bfloat16")
    model = attach_head(load_base(options), HeadSpec(DIMENSIONS), seed=1)
    adapted = add_adapter(model, AdapterOptions(), seed=1)
    processor = load_processor(str(base))
    contract = new_adapter_config(adapted, processor, options, "bradley_terry", "reward")
    save_adapter(folder, adapted, processor, contract)
    return folder


def test_a_saved_model_is_opened_so(base: Path) -> None:
    folder = save_reward_model(base, base.parent / "adapter")
    case = make_case(0, answers=4)
    asked = (case.images, case.question, case.answers)
    together, separate = (
        load(folder, shared_prefix=shared, deterministic=True).score(*asked)  # type: ignore[union-attr]
        for shared in ("on", "off")
    )
    assert (together == separate).all()
    assert (load(folder).score(*asked) != together).any()  # type: ignore[union-attr]


@pytest.mark.distributed
def test_two_processes_say_what_one_says(base: Path, tmp_path: Path) -> None:
    folder = save_reward_model(base, base.parent / "saved")
    launchers = {
        "one": [],
        "two": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    }
    for name, launcher in launchers.items():
        done = subprocess.run(
            [sys.executable, *launcher, str(WORKER), str(folder), str(base), str(tmp_path / name)],
            env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
    for readout in ("reward", "likelihood", "verdict_probability"):
        one, two = (
            (tmp_path / name / readout / "responses.jsonl").read_bytes() for name in launchers
        )
        assert one == two
        assert one.count(b"\n") == 7 if readout != "verdict_probability" else one
