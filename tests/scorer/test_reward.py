"""Reward scores: the same alone and in company, in order, in bounded memory."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from presentations import by_order
from scorer.cases import broken_image, make_case, stored_image
from scorer.reward_models import DIMENSIONS, make_scorer
from tiny import TINY_FAMILIES, save_tiny

import medrm
from medrm.config.options import AdapterOptions, ModelOptions
from medrm.errors import AdapterError, DataError
from medrm.models.adapter import save_adapter
from medrm.models.adapter_config import new_adapter_config
from medrm.models.base_model import load_base
from medrm.models.processors import load_processor
from medrm.models.reward_model import HeadSpec, attach_head
from medrm.models.trainable import add_adapter
from medrm.schema import Case
from medrm.scorer import runner as batches
from medrm.scorer.open import load
from medrm.scorer.readouts.answer_rewards import RewardModel


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved base model of one family."""
    return save_tiny("qwen2_5_vl", tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def scorer(folder: Path) -> RewardModel:
    return make_scorer("qwen2_5_vl", folder)


def mixed_cases() -> list[Case]:
    """Different K, image sizes, several images, none, and one image used twice."""
    return [
        make_case(0),
        make_case(1, answers=3, sizes=((28, 28), (40, 90))),
        make_case(2, answers=2, sizes=()),
        make_case(3, answers=4, sizes=((120, 56),)),
        make_case(6, answers=2, sizes=((56, 56), (28, 60))),
        make_case(4, answers=2, sizes=()),
        dataclasses.replace(make_case(5), images=make_case(0).images),
    ]


@pytest.mark.parametrize("max_length", [None, 4000])
def test_what_the_positions_of_the_base_cannot_hold_is_too_long(
    max_length: int | None, folder: Path
) -> None:
    scorer = make_scorer("qwen2_5_vl", folder, max_length=max_length)
    window = scorer.model.config.get_text_config().max_position_embeddings
    assert scorer.longest_row == window < 4000
    assert scorer.settings["max_length"] == max_length  # what is compared is what was asked for
    long = dataclasses.replace(make_case(9), answers=("short", "lungs " * window))
    assert [one.reason for one in by_order(scorer, [make_case(0), long])] == [None, "too_long"]
    with pytest.raises(DataError, match=rf"case-9.*more than {window} tokens"):
        list(scorer.score_cases([long]))


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_company_changes_no_score(family: str, folder: Path) -> None:
    cases = mixed_cases()
    together = dict_of(make_scorer(family, folder), cases)
    alone = dict_of(make_scorer(family, folder, batch_rows=1), cases)
    assert list(together) == [case.case_id for case in cases]
    for case in cases:
        rewards = together[case.case_id]
        assert rewards.shape == (len(case.answers), len(DIMENSIONS))
        assert rewards.dtype == np.float32
        assert np.abs(rewards - alone[case.case_id]).max() <= 1e-5
        assert np.ptp(rewards, axis=0).min() > 1e-4  # answers are told apart
    assert np.abs(together["case-0"] - together["case-2"]).max() > 1e-4


def dict_of(scorer: RewardModel, cases: list[Case]) -> dict[str, np.ndarray]:
    return {case.case_id: rewards for case, rewards in scorer.score_cases(cases)}


def test_cases_are_read_a_window_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "LOOKAHEAD_PER_ROW", 2)
    scorer = make_scorer("qwen2_5_vl", folder, batch_rows=3)
    taken: list[int] = []

    def endless() -> Iterator[Case]:
        number = 0
        while True:
            taken.append(number)
            # Falling length, so that sorting inside a window would show in the order.
            yield make_case(50 - number, sizes=((28, 28),))
            number += 1

    scored = scorer.score_cases(endless())
    names = [next(scored)[0].case_id for _ in range(8)]
    assert names == [f"case-{50 - number}" for number in range(8)]
    assert len(taken) == 12


@pytest.mark.parametrize(
    ("rows", "lower"),
    [
        (8, r"Lower --evaluation_batch_rows from 8 to [234]\."),
        (1, "Give smaller images, or weights of less precision"),
    ],
)
def test_too_little_memory_says_what_to_lower(
    folder: Path, monkeypatch: pytest.MonkeyPatch, rows: int, lower: str
) -> None:
    scorer = make_scorer("qwen2_5_vl", folder, batch_rows=rows)

    def out_of_memory(*unused: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(scorer.model, "forward", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError) as raised:
        dict_of(scorer, mixed_cases())
    held, advice = raised.value.__notes__
    assert re.fullmatch(r"Scored at once: rows \d of \d cases\.", held)
    assert re.search(lower, advice)


def test_score_takes_any_kind_of_image(scorer: RewardModel, tmp_path: Path) -> None:
    reference = stored_image(3)
    stored = reference.read()
    path = tmp_path / "scan.png"
    path.write_bytes(stored)
    kinds = [path, str(path), stored, Image.open(path), reference]
    scores = [scorer.score([kind], "What?", ["one", "two", "three"]) for kind in kinds]
    assert scores[0].shape == (3, 2)
    assert all(np.array_equal(scores[0], other) for other in scores[1:])
    assert not np.array_equal(scores[0], scorer.score([], "What?", ["one", "two", "three"]))
    wide = Image.fromarray(np.zeros((40, 60), np.float32), mode="F")
    assert scorer.score([wide], "What?", ["one"]).shape == (1, 2)


def test_wrong_input_is_named(scorer: RewardModel) -> None:
    with pytest.raises(DataError, match="no answer"):
        scorer.score([], "What?", [])
    with pytest.raises(DataError, match="at least two"):
        scorer.compare([], "What?", ["one"])
    with pytest.raises(DataError, match="one text as its answers; give a list"):
        scorer.score([], "What?", "one")
    with pytest.raises(DataError, match="one image in place of a list"):
        scorer.score("absent.png", "What?", ["one"])
    with pytest.raises(DataError, match=r"no image file 'absent\.png'"):
        scorer.score(["absent.png"], "What?", ["one"])
    with pytest.raises(DataError, match="number 0"):
        scorer.score([b"no image"], "What?", ["one"])


def test_compare_prefers_the_higher_score(scorer: RewardModel) -> None:
    answers = ["one", "two lungs", "three"]
    rewards = scorer.score([], "What?", answers)
    verdicts = scorer.compare([], "What?", answers)
    assert list(verdicts) == list(DIMENSIONS)
    for column, verdict in enumerate(verdicts.values()):
        assert verdict.outcome == rewards[:, column].argmax()
        assert verdict.scores == tuple(rewards[:, column].tolist())
        assert (verdict.score_a, verdict.score_b, verdict.probability_a) == (None, None, None)
        assert (verdict.order, verdict.protocol, verdict.label) == ("both", None, None)
    for column, verdict in enumerate(scorer.compare([], "What?", answers[:2]).values()):
        first, second = rewards[:2, column].tolist()
        assert verdict.outcome == ("A" if first > second else "B")
        assert (verdict.score_a, verdict.score_b) == pytest.approx((first, second), abs=1e-5)
        assert verdict.probability_a == pytest.approx(1 / (1 + np.exp(second - first)), abs=1e-5)
    assert scorer.compare([], "What?", ["same", "same"])["overall"].outcome == "tie"


def test_bad_cases_keep_their_place_and_reason(folder: Path) -> None:
    scorer = make_scorer("qwen2_5_vl", folder, max_length=60)
    long = dataclasses.replace(make_case(9), answers=("short", "lungs " * 60))
    broken = dataclasses.replace(make_case(8), images=(stored_image(1), broken_image()))
    cases = [make_case(0), long, broken, make_case(1)]
    scored = by_order(scorer, cases)
    assert [one.case for one in scored] == cases
    assert [one.reason for one in scored] == [None, "too_long", "bad_image", None]
    assert [one.scores is None for one in scored] == [False, True, True, False]
    assert {one.order for one in scored} == {"forward"}
    alone = dict_of(scorer, cases[3:])["case-1"]
    assert np.abs(scored[3].scores - alone).max() <= 1e-5
    with pytest.raises(DataError, match=r"case-9.*more than 60 tokens, the model's limit"):
        list(scorer.score_cases([long]))
    with pytest.raises(DataError, match="broken"):
        list(scorer.score_cases([broken]))


def test_a_failure_never_becomes_a_verdict(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = make_scorer("qwen2_5_vl", folder)

    def fail(**_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(scorer.model, "forward", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        by_order(scorer, [make_case(0)])


def test_batches_hold_what_belongs_together() -> None:
    cases = mixed_cases()
    planned = batches.plan(cases, [len(case.answers) for case in cases], 4)
    assert sorted(place for batch in planned for place in batch) == list(range(len(cases)))
    for batch in planned:
        assert len({len(cases[place].images) for place in batch}) == 1
        assert sum(len(cases[place].answers) for place in batch) <= 4


def test_load_gives_the_saved_scores(folder: Path, tmp_path: Path) -> None:
    options = ModelOptions(model_name_or_path=str(folder))
    base = attach_head(load_base(options), HeadSpec(DIMENSIONS), seed=1)
    model = add_adapter(base, AdapterOptions(lora_r=4))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.01  # as training would; fresh LoRA weights change nothing
    model.eval()
    processor = load_processor(str(folder))
    contract = new_adapter_config(model, processor, options, "bradley_terry", "reward")
    scorer = RewardModel(model, processor, contract)
    saved = tmp_path / "adapter"
    save_adapter(saved, model, processor, contract)
    (tmp_path / "run.json").write_text(json.dumps({"config": {"model_name_or_path": str(folder)}}))
    loaded = medrm.load(saved, device="cpu")
    assert loaded.dimensions == DIMENSIONS
    expected, found = dict_of(scorer, mixed_cases()), dict_of(loaded, mixed_cases())
    assert all(np.array_equal(expected[name], found[name]) for name in expected)


def test_load_says_what_is_missing(folder: Path) -> None:
    with pytest.raises(AdapterError, match=r"has no medrm\.json"):
        load(folder)
    for name in ("/absent/folder", "runs/quickstart/adapter", "no folder", "./absent"):
        with pytest.raises(AdapterError, match=f"There is no folder '{name}'; a hub id looks like"):
            load(name)
    with pytest.raises(AdapterError, match="revision='v1' in Python, --revision v1 of a command"):
        load("nobody/nothing@v1")
    absent = "'nobody/nothing' cannot be had: there is no such folder here, the cache lacks it"
    with pytest.raises(AdapterError, match=f"{absent} or a part of it, and HF_HUB_OFFLINE is set"):
        load("nobody/nothing")
    with pytest.raises(AdapterError, match=r"has no medrm\.json\. A base model has neither head"):
        load("phantom-base")
