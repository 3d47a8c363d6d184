"""A reward model as a reward function: TRL's calls, and those of verl, ms-swift and OpenRLHF."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import importlib.util
import inspect
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from scorer.cases import broken_image, stored_image
from scorer.reward_models import DIMENSIONS, make_scorer
from tiny import save_tiny
from tiny_text import save_text_base
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

import medrm
from medrm.errors import ConfigError, DataError
from medrm.schema import Case, Turn
from medrm.scorer.caller_cases import ANY_IMAGES
from medrm.scorer.readouts.answer_rewards import RewardModel

ROOT = Path(__file__).parents[1]
QUESTIONS = ["Is it clear?", "Is it clear?", "Is there a lesion?", "Is it clear?"]
ANSWERS = ["yes", "no, the lungs are not", "no", "A"]


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    base = save_tiny("qwen2_5_vl", tmp_path_factory.mktemp("base") / "base")
    return make_scorer("qwen2_5_vl", base, max_length=200, batch_rows=4)


@pytest.fixture
def calls(scorer: RewardModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of answers of each forward pass."""
    rows: list[int] = []
    forward = scorer.model.forward

    def counted(*arguments: Any, **inputs: Any) -> Any:
        output = forward(*arguments, **inputs)
        rows.append(len(output.rewards))
        return output

    monkeypatch.setattr(scorer.model, "forward", counted)
    return rows


def pixels() -> Image.Image:
    return Image.fromarray(np.arange(56 * 84, dtype=np.uint32).astype(np.uint8).reshape(56, 84))


def rewards_of(scorer: RewardModel, image: Any, question: str, answer: str, *context: Turn) -> Any:
    """The rewards of an answer in a conversation about one image, or none."""
    images = () if image is None else ANY_IMAGES.images(image)
    case = Case("x", images, question, (answer,), context=context)
    ((_, rewards),) = scorer.score_cases([case])
    return rewards[0]


def close(rewards: Any, expected: Any) -> bool:
    return bool(np.abs(np.array(rewards, float) - np.array(expected, float)).max() < 1e-5)


def test_rewards_are_those_of_the_model(scorer: RewardModel, calls: list[int]) -> None:
    images = [pixels(), pixels(), pixels(), None]
    expected = [
        scorer.score([] if image is None else [image], question, [answer])[0]
        for image, question, answer in zip(images, QUESTIONS, ANSWERS, strict=True)
    ]
    calls.clear()
    reward = medrm.RewardFunction(scorer)
    assert reward.dimensions == ("overall",)
    assert reward.__name__ == "medrm_overall"
    columns = {"image": images, "solution": [1, 2, 3, 4], "trainer_state": None}
    rewards = reward(prompts=QUESTIONS, completions=ANSWERS, completion_ids=[], **columns)
    assert close(rewards, [values[1] for values in expected])
    assert sum(calls) == 4
    both = medrm.RewardFunction(scorer, ["accuracy", "overall"], {"accuracy": 2})
    summed = [2 * values[0] + values[1] for values in expected]
    assert close(both(QUESTIONS, ANSWERS, image=images), summed)


def test_conversations_hold_images_and_a_system_turn(scorer: RewardModel) -> None:
    picture, question, answer = pixels(), QUESTIONS[0], ANSWERS[0]
    content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
    system = {"role": "system", "content": "Think before you answer."}
    prompt = [system, {"role": "user", "content": content}]
    completion = [{"role": "assistant", "content": answer}]
    parts = [{"role": "assistant", "content": [{"type": "text", "text": answer}]}]
    expected = scorer.score([picture], question, [answer])[0, 1]
    reward = medrm.RewardFunction(scorer)
    assert close(reward([prompt, prompt], [completion, parts]), [expected] * 2)
    turns = [*prompt, *completion, {"role": "user", "content": "Are you sure?"}]
    assert close(reward([turns], [completion], question=[question]), [expected])


def test_earlier_turns_are_read(scorer: RewardModel, caplog: pytest.LogCaptureFixture) -> None:
    picture, turns = pixels(), [Turn("user", QUESTIONS[2], 1), Turn("assistant", "no")]
    expected = rewards_of(scorer, picture, QUESTIONS[0], "yes", *turns)
    mark, said = {"type": "image", "image": picture}, {"role": "assistant", "content": "no"}
    first: dict[str, Any] = {
        "role": "user",
        "content": [mark, {"type": "text", "text": QUESTIONS[2]}],
    }
    prompt = [first, said, {"role": "user", "content": QUESTIONS[0]}]
    alone = prompt[-1:]
    reward = medrm.RewardFunction(scorer)
    assert close(reward([prompt], ["yes"]), expected[1:])
    unmarked = [{"role": "user", "content": QUESTIONS[2]}, *prompt[1:]]
    both = reward([unmarked, alone], ["yes"] * 2, images=[[picture]] * 2)
    assert both[0] == pytest.approx(expected[1], abs=1e-5)
    assert both[1] == pytest.approx(scorer.score([picture], QUESTIONS[0], ["yes"])[0, 1], abs=1e-5)
    assert abs(both[0] - both[1]) > 1e-4
    system = [{"role": "system", "content": "Be brief."}, *prompt]
    assert close(reward([system], ["yes"]), expected[1:])
    turns.insert(0, Turn("system", "Be brief."))
    told = rewards_of(scorer, picture, QUESTIONS[0], "yes", *turns)
    assert close(medrm.RewardFunction(scorer, reads_system=True)([system], ["yes"]), told[1:])
    assert abs(told[1] - expected[1]) > 1e-4
    assert reward([prompt[:2], [*prompt[:1], *alone]], ["yes"] * 2) == [None] * 2
    assert "its turns do not alternate" in caplog.text


def test_images_within_messages_are_each_prompts_own(scorer: RewardModel) -> None:
    stored = [stored_image(number).read() for number in range(4)] * 3
    prompts = [
        [
            {
                "role": "user",
                "content": [
                    {"type": "image", "base64": base64.b64encode(image).decode()},
                    {"type": "text", "text": QUESTIONS[0]},
                ],
            }
        ]
        for image in stored
    ]
    expected = [scorer.score([image], QUESTIONS[0], ["yes"])[0, 1] for image in stored]
    assert close(medrm.RewardFunction(scorer)(prompts, ["yes"] * 12), expected)


def test_each_dimension_shares_one_forward(scorer: RewardModel, calls: list[int]) -> None:
    functions = medrm.RewardFunction(scorer, DIMENSIONS).each()
    assert [function.__name__ for function in functions] == ["medrm_accuracy", "medrm_overall"]
    images = [[pixels()] for _ in range(4)]
    asked: Any = {"prompts": list(QUESTIONS), "completions": ANSWERS, "images": images}
    columns = [function(**asked) for function in functions]
    assert sum(calls) == 4
    assert not close(*columns)
    asked["prompts"][3] = "Is it another?"  # changed in place, it is another question
    changed = functions[0](**asked)
    assert changed[:3] == pytest.approx(columns[0][:3], abs=1e-5)
    assert changed[3] != pytest.approx(columns[0][3], abs=1e-5)
    assert sum(calls) == 8
    images[0].append(pixels())
    functions[0](**asked)
    assert sum(calls) == 12


def test_what_cannot_be_scored_is_none_alone(
    scorer: RewardModel, caplog: pytest.LogCaptureFixture
) -> None:
    answers = [ANSWERS[0], "lungs " * 300, ANSWERS[1], "B", "C"]
    images = [[stored_image(1)], [stored_image(1)], [stored_image(1)], [broken_image()], [7]]
    reward = medrm.RewardFunction(scorer)
    rewards = reward([QUESTIONS[0]] * 5, answers, images=images)
    alone = [scorer.score([stored_image(1)], QUESTIONS[0], [answers[i]])[0, 1] for i in (0, 2)]
    assert close([rewards[0], rewards[2]], alone)
    assert [rewards[i] for i in (1, 3, 4)] == [None] * 3
    assert "3 of 5 completions have no reward" in caplog.text
    for told in ("int as", "a row has more than 200 tokens", r"Image \S+ cannot be decoded"):
        assert re.search(f"1 x {told}", caplog.text), told
    assert reward.one("Is it?", "yes", images=[b"junk"]) is None
    assert re.search(r"1 of 1 completions have no reward: 1 x Image .* cannot", caplog.text)
    odd: list[Any] = [[], [{"role": "assistant", "content": None}], [None], 7, "yes"]
    asked = reward(["?"] * 5, odd)
    assert asked[:4] == [None] * 4
    assert asked[4] is not None
    parts: list[Any] = [{"type": "output_text", "text": "yes"}, {"type": "video", "video": "v"}]
    told = reward(["?"] * 2, [[{"role": "assistant", "content": parts[:n]}] for n in (1, 2)])
    assert told == [pytest.approx(asked[4]), None]
    unread: list[Any] = [None, [7], [{"content": "?"}], [{"role": "user", "content": None}]]
    half = [{"role": "user", "content": "\ud800"}, {"role": "assistant", "content": "?"}]
    unread += [[*half, {"role": "user", "content": "?"}], "?"]
    assert [one is None for one in reward(unread, ["yes"] * 6)] == [True] * 5 + [False]
    with pytest.raises(DataError, match="2 prompts and 1 completions"):
        reward(["?", "?"], ["a"])
    with pytest.raises(DataError, match="column images has 2 values for 1 completions"):
        reward(["?"], ["a"], images=[[], []])


def test_a_reward_that_is_no_number_is_none_alone(
    scorer: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    respond = scorer.respond

    def broken(cases: Any) -> Any:
        for case, response in zip(cases := list(cases), respond(cases), strict=True):
            rewards = {
                name: tuple(
                    float("nan") if answer == "no" else value
                    for answer, value in zip(case.answers, values, strict=True)
                )
                for name, values in response.rewards.items()
            }
            yield dataclasses.replace(response, rewards=rewards)

    monkeypatch.setattr(scorer, "respond", broken)
    rewards = medrm.RewardFunction(scorer)(["Is it?"] * 3, ["yes", "no", "A"])
    assert [one is None for one in rewards] == [False, True, False]


def test_dimensions_are_asked_for_by_name(scorer: RewardModel) -> None:
    with pytest.raises(ConfigError, match=r"'acuracy'\. Did you mean 'accuracy'"):
        medrm.RewardFunction(scorer, ["acuracy"])
    with pytest.raises(ConfigError, match="weights name 'overall'"):
        medrm.RewardFunction(scorer, ["accuracy"], {"overall": 1})
    with pytest.raises(ConfigError, match="Name the dimensions to reward"):
        medrm.RewardFunction(scorer, [])
    with pytest.raises(ConfigError, match="is a judge"):
        medrm.RewardFunction(object())  # type: ignore[arg-type]


def test_trl_trains_with_the_function(scorer: RewardModel, tmp_path: Path) -> None:
    folder = save_text_base("granite", tmp_path / "policy")
    policy = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [{"prompt": [{"role": "user", "content": question}]} for question in QUESTIONS]
    arguments = GRPOConfig(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=4,
        report_to="none",
        use_cpu=True,
        logging_steps=1,
    )
    functions = medrm.RewardFunction(scorer, DIMENSIONS).each()
    trainer = GRPOTrainer(
        policy, functions, arguments, Dataset.from_list(rows), processing_class=tokenizer
    )
    trainer.train()
    logged = trainer.state.log_history[0]
    for name in DIMENSIONS:
        assert np.isfinite(logged[f"rewards/medrm_{name}/mean"])


@pytest.fixture
def shim(scorer: RewardModel, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Loads a file of recipes/rewards as the stacks do: by its path."""
    monkeypatch.setenv("MEDRM_REWARD_MODEL", "reward-model")
    monkeypatch.setenv("MEDRM_REWARD_DIMENSIONS", ",".join(DIMENSIONS))
    monkeypatch.setattr("medrm.reward_function.load", lambda name: scorer)

    def loaded(name: str) -> Any:
        path = ROOT / "recipes" / "rewards" / f"{name}.py"
        spec = importlib.util.spec_from_file_location("custom_module", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return loaded


def test_verl_calls_compute_score(scorer: RewardModel, shim: Any) -> None:
    module, stored = shim("verl_reward"), stored_image(1).read()
    extra = {"question": QUESTIONS[0], "images": [{"bytes": stored, "path": None}], "index": 3}
    score = module.compute_score(
        data_source="vqa", solution_str="yes", ground_truth="", extra_info=extra
    )
    accuracy, overall = scorer.score([stored], QUESTIONS[0], ["yes"])[0]
    assert close(list(score.values()), [accuracy + overall, accuracy, overall])
    assert list(score) == ["score", *DIMENSIONS]
    with pytest.raises(ValueError, match="no 'question'"):
        module.compute_score("vqa", "yes", "", {})
    with pytest.raises(ValueError, match="cannot be scored"):
        module.compute_score("vqa", "lungs " * 300, "", extra)


def test_verl_awaits_compute_score_and_calls_are_scored_together(
    scorer: RewardModel, shim: Any, calls: list[int]
) -> None:
    """As DAPORewardManager.run_single does: awaited, by name, with arguments of its own."""
    module, stored = shim("verl_reward"), stored_image(1).read()
    assert inspect.iscoroutinefunction(module.compute_score_async)
    extra = {"question": QUESTIONS[0], "images": [stored], "num_turns": 1}
    answers = [*ANSWERS, *"CDEF"]

    async def run_all() -> list[Any]:
        scores = [
            module.compute_score_async(
                data_source="vqa", solution_str=answer, ground_truth="", extra_info=extra,
                strict_box_verify=False,
            )
            for answer in [*answers, "lungs " * 300]
        ]  # fmt: skip
        return await asyncio.gather(*scores, return_exceptions=True)

    with ThreadPoolExecutor(1) as pool:
        with module.rewards()._turn:
            running = pool.submit(asyncio.run, run_all())
            while len(module.rewards()._waiting) < 9:
                time.sleep(0.01)
            calls.clear()
        *scored, failed = running.result()
    assert isinstance(failed, ValueError)
    assert sum(calls) == 8
    assert len(calls) < 8  # of batch_rows rows each, and not one for each call
    expected = scorer.score([stored], QUESTIONS[0], answers)
    for score, (accuracy, overall) in zip(scored, expected, strict=True):
        assert close(list(score.values()), [accuracy + overall, accuracy, overall])


def test_ms_swift_calls_a_registered_class(
    scorer: RewardModel, shim: Any, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    rewards = ModuleType("swift.rewards")
    rewards.ORM, rewards.orms = object, {}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "swift", ModuleType("swift"))
    monkeypatch.setitem(sys.modules, "swift.rewards", rewards)
    shim("ms_swift_plugin")
    images = [[{"bytes": stored_image(1).read(), "path": None}]] * 2
    messages = [
        [
            {"role": "user", "content": f"<image>{QUESTIONS[0]}"},
            {"role": "assistant", "content": answer},
        ]
        for answer in ANSWERS[:2]
    ]
    expected = scorer.score([stored_image(1)], QUESTIONS[0], ANSWERS[:2])
    calls.clear()
    for column, name in enumerate(DIMENSIONS):
        function = rewards.orms[f"medrm_{name}"](args=None)
        assert type(function).__name__ == f"medrm_{name}"  # by which ms-swift logs it
        scored = function(ANSWERS[:2], messages=messages, images=images, solution=["", ""])
        assert close(scored, expected[:, column])
    assert sum(calls) == 2
    said, again = {"role": "user", "content": QUESTIONS[0]}, messages[0][-1]
    longer = [[said, again, {"role": "user", "content": "<image>Sure?"}, again], messages[1]]
    scored = function(ANSWERS[:2], messages=longer, images=images)
    turns = [Turn("user", QUESTIONS[0]), Turn("assistant", ANSWERS[0])]
    assert scored[0] == pytest.approx(
        rewards_of(scorer, stored_image(1), "Sure?", ANSWERS[0], *turns)[1], abs=1e-5
    )
    assert close(scored[1], expected[1, 1])
    # The system turn is for the policy, unless the reward model was trained with it.
    told = [[{"role": "system", "content": "Be brief."}, said, again]]
    for reads, before in (("0", []), ("1", [Turn("system", "Be brief.")])):
        monkeypatch.setenv("MEDRM_REWARD_READS_SYSTEM", reads)
        shim("ms_swift_plugin")
        scored = rewards.orms["medrm_overall"]()(ANSWERS[:1], messages=told)
        assert close(scored, rewards_of(scorer, None, QUESTIONS[0], ANSWERS[0], *before)[1:])
    monkeypatch.setenv("MEDRM_REWARD_READS_SYSTEM", "yes")
    with pytest.raises(ConfigError, match="MEDRM_REWARD_READS_SYSTEM is 'yes'; give 0 or 1"):
        medrm.RewardFunction.from_environment()


def test_openrlhf_calls_reward_func(
    scorer: RewardModel, shim: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = shim("openrlhf_reward")
    prompts = [f"<|im_start|>user\n{question}" for question in QUESTIONS[:2]]
    ends = ["<|im_end|>", "</s>\n"]  # OpenRLHF decodes with special tokens
    queries = [p + answer + end for p, answer, end in zip(prompts, ANSWERS, ends, strict=False)]
    monkeypatch.setenv("MEDRM_QUESTION_IN_LABELS", "1")
    scored = module.reward_func(queries, prompts, QUESTIONS[:2], images=None)
    expected = [
        scorer.score([], question, [answer])[0]
        for question, answer in zip(QUESTIONS[:2], ANSWERS, strict=False)
    ]
    assert close(scored["rewards"], np.sum(expected, axis=1))
    assert torch.equal(scored["scores"], scored["rewards"].sigmoid())
    alone = module.reward_func(queries[1:], prompts[1:], QUESTIONS[1:2])
    assert close(alone["rewards"], np.sum(expected[1:], axis=1))
    with pytest.raises(ValueError, match="does not start with its prompt"):
        module.reward_func(["another"], prompts[:1], QUESTIONS[:1])
    assert close(scored["extra_logs"]["accuracy"], [values[0] for values in expected])


def test_a_model_must_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDRM_REWARD_MODEL", raising=False)
    with pytest.raises(ConfigError, match="MEDRM_REWARD_MODEL is not set"):
        medrm.RewardFunction.from_environment()
