"""The trainer: the global loss, whatever the cut; determinism, resuming, metrics, checkpoints."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from preferences import DIMENSIONS, Recipe, make_recipe, preference, preferences
from torch import Tensor

from medrm.config.options import AdapterOptions
from medrm.errors import ConfigError, DataError
from medrm.models.reward_model import head_of
from medrm.objectives import OBJECTIVES, load_objective
from medrm.objectives.bradley_terry import PooledHead, head_spec
from medrm.objectives.objective import fit_for_training
from medrm.schema import PairLabel

Build = Callable[..., Recipe]


def trained_state(recipe: Recipe) -> dict[str, Tensor]:
    """Trains and returns copies of what was trained."""
    recipe.trainer().train()
    return {n: p.detach().clone() for n, p in recipe.model.named_parameters() if p.requires_grad}


def logged(recipe: Recipe, key: str = "loss") -> list[float]:
    path = Path(recipe.run.training.output_dir, "metrics.jsonl")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [line[key] for line in lines if key in line]


def one_step_gradients(recipe: Recipe) -> tuple[dict[str, Tensor], float]:
    """Returns the gradients that the first optimiser step sees, and its loss."""
    trainer, gradients = recipe.trainer(), {}
    clip = trainer._clip_grad_norm

    def keep(model: Any) -> Any:
        gradients.update(
            {n: p.grad.clone() for n, p in recipe.model.named_parameters() if p.grad is not None}
        )
        return clip(model)

    trainer._clip_grad_norm = keep
    trainer.train()
    return gradients, logged(recipe)[0]


def by_hand(recipe: Recipe) -> float:
    """Returns the first step's loss by its formula: sum of w l over all labels / sum of w."""
    trainer = recipe.trainer()
    chosen = [recipe.train[index] for index in trainer.plan.step_cases(0)[0]]
    total, weight = 0.0, 0.0
    for case in chosen:
        with torch.no_grad():
            rewards = recipe.model(**recipe.collator.rows([case])).rewards
        for index, name in enumerate(trainer.targets.dimensions):
            if name in case.labels:
                first, tie, _ = case.labels[name].shares
                d = float(rewards[0, index] - rewards[1, index])
                y = first + tie / 2
                total += y * math.log1p(math.exp(-d)) + (1 - y) * math.log1p(math.exp(d))
                weight += 1
    return total / weight


@pytest.mark.parametrize("micro", [8, 3, 1])
def test_a_step_is_the_global_formula_whatever_the_cut(micro: int, tmp_path: Path) -> None:
    options = {"max_steps": 1, "eval_strategy": "no", "save_strategy": "no",
               "load_best_model_at_end": False}  # fmt: skip
    uncut = make_recipe(tmp_path / "uncut", **options)
    expected = by_hand(uncut)
    gradients, loss = one_step_gradients(uncut)
    assert loss == pytest.approx(expected, abs=1e-5)
    cut = make_recipe(tmp_path / "cut", **options, per_device_train_batch_size=micro)
    cut_gradients, cut_loss = one_step_gradients(cut)
    assert cut.trainer().plan.rounds == math.ceil(8 / micro)
    assert cut_loss == pytest.approx(expected, abs=1e-5)
    assert gradients.keys() == cut_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(cut_gradients[name], gradient, atol=2e-6, rtol=1e-4)


def test_only_adapter_and_head_train_and_missing_dimensions_give_no_gradient(recipe: Build) -> None:
    cases = [case for case in preferences(40) if "overall" not in case.labels][:8]
    gradients, _ = one_step_gradients(recipe(train=cases, max_steps=1))
    assert all("lora" in name or ".score." in name for name in gradients)
    last = next(g for name, g in gradients.items() if ".score." in name)
    assert last[0].abs().sum() > 0
    assert last[1].abs().sum() == 0


def test_one_seed_gives_one_adapter_and_resuming_the_straight_run(tmp_path: Path) -> None:
    options = {"max_steps": 5, "save_steps": 2, "eval_steps": 2, "save_total_limit": None,
               "load_best_model_at_end": False, "per_device_train_batch_size": 3}  # fmt: skip
    straight = make_recipe(tmp_path / "a", **options)
    wanted = trained_state(straight)
    again = trained_state(make_recipe(tmp_path / "b", **options))
    assert all(torch.equal(wanted[name], again[name]) for name in wanted)
    resumed = make_recipe(tmp_path / "a", **options)
    lines = logged(straight)
    with (tmp_path / "a" / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 5, "lo')  # where it was killed
    trainer = resumed.trainer()
    trainer.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-4"))
    state = {n: p for n, p in resumed.model.named_parameters() if p.requires_grad}
    assert all(torch.equal(wanted[name], state[name]) for name in wanted)
    assert logged(resumed) == lines
    other = trained_state(make_recipe(tmp_path / "c", **options, seed=43))
    assert not all(torch.equal(wanted[name], other[name]) for name in wanted)


def test_learning_reaches_the_development_cases_and_the_best_is_kept(recipe: Build) -> None:
    built = recipe(max_steps=16, eval_steps=4, save_steps=4)
    trainer = built.trainer()
    trainer.train()
    final = trainer.evaluate()
    assert final["eval_accuracy"] == 1
    losses = logged(built, "eval_loss")
    assert final["eval_loss"] == pytest.approx(min(losses), abs=1e-6)
    assert trainer.state.best_metric == pytest.approx(min(losses))


def test_metrics_have_one_row_for_each_case_of_any_kind(recipe: Build) -> None:
    mixed = [
        *preferences(3, 100), *preferences(4, 200, pictured=False), *preferences(2, 300, answers=3),
    ]  # fmt: skip
    built = recipe(development=mixed, train=[*preferences(8), *preferences(4, 50, answers=3)])
    trainer = built.trainer()
    metrics = trainer.evaluate()
    hits: dict[str, list[float]] = {"accuracy": [], "overall": []}
    for case in mixed:
        with torch.no_grad():
            rewards = built.model.eval()(**built.collator.rows([case])).rewards
        for index, name in enumerate(hits):
            if name in case.labels and len(case.answers) == 2:
                preferred = case.labels[name].choice
                hits[name].append(float(rewards[preferred, index] > rewards[1 - preferred, index]))
            elif name in case.labels:
                hits[name].append(float((rewards[0, index] > rewards[1:, index]).float().mean()))
    for name, values in hits.items():
        assert metrics[f"eval_accuracy_{name}"] == pytest.approx(sum(values) / len(values))


def test_mixed_cases_train(recipe: Build) -> None:
    mixed = [
        *preferences(6, ties=True), *preferences(6, 50, pictured=False),
        *preferences(6, 90, answers=3),
    ]  # fmt: skip
    built = recipe(train=mixed, max_steps=3, per_device_train_batch_size=4)
    before = head_of(built.model).tie_logit
    assert before is not None
    state = trained_state(built)
    assert all(parameter.isfinite().all() for parameter in state.values())
    tie = next(value for name, value in state.items() if name.endswith("tie_logit"))
    assert tie[0] != 0
    assert len(logged(built)) == 3


def test_the_tie_parameter_starts_at_the_share_of_ties(recipe: Build) -> None:
    cases = preferences(20, ties=True)
    built = recipe(train=cases)
    assert built.run.training.ties == "davidson"
    spec = head_of(built.model).spec
    assert spec.tied_dimensions == ("accuracy",)
    built.trainer()
    votes = [case.labels["accuracy"] for case in cases]
    share = sum(v.shares[1] * v.votes for v in votes) / sum(v.votes for v in votes)
    tie = head_of(built.model).tie_logit
    assert tie is not None
    assert tie[0].exp().item() == pytest.approx(2 * share / (1 - share))
    assert head_spec(built.run, ("overall",), cases).ties == "none"


def test_the_head_has_its_own_learning_rate(recipe: Build) -> None:
    built = recipe()
    trainer = built.trainer()
    groups = trainer.create_optimizer().param_groups
    head = {id(parameter) for parameter in head_of(built.model).parameters()}
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    trained = [p for p in built.model.parameters() if p.requires_grad]
    assert {id(p) for p in trained} == rates.keys()
    assert {rates[id(p)] for p in trained if id(p) in head} == {1e-2}
    assert {rates[id(p)] for p in trained if id(p) not in head} == {5e-3}


def test_the_probe_on_stored_states_is_the_frozen_model(tmp_path: Path, monkeypatch: Any) -> None:
    options = {"frozen": True, "max_steps": 6, "per_device_train_batch_size": 3}
    stored = make_recipe(tmp_path / "stored", **options)
    trainer = stored.trainer()
    assert isinstance(trainer.model, PooledHead)
    trainer.train()
    monkeypatch.setattr("medrm.objectives.bradley_terry.trains_head_alone", lambda model: False)
    plain = make_recipe(tmp_path / "plain", **options)
    plain.trainer().train()
    for ours, theirs in zip(
        head_of(stored.model).parameters(), head_of(plain.model).parameters(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert logged(stored, "eval_accuracy") == logged(plain, "eval_accuracy")


def test_gradient_checkpointing_changes_no_loss(tmp_path: Path) -> None:
    plain = make_recipe(tmp_path / "plain")
    trained_state(plain)
    saving = make_recipe(tmp_path / "saving", gradient_checkpointing=True)
    trained_state(saving)
    assert logged(saving) == pytest.approx(logged(plain), abs=1e-5)


def test_bf16_trains_with_a_head_in_fp32(recipe: Build) -> None:
    built = recipe(bf16=True)
    state = trained_state(built)
    assert all(math.isfinite(loss) for loss in logged(built))
    assert {value.dtype for name, value in state.items() if ".score." in name} == {torch.float32}


def test_workers_bring_the_same_batches(tmp_path: Path) -> None:
    state = trained_state(make_recipe(tmp_path / "none", max_steps=2))
    workers = trained_state(make_recipe(tmp_path / "two", max_steps=2, dataloader_num_workers=2))
    assert all(torch.equal(state[name], workers[name]) for name in state)


def test_over_long_cases_are_set_aside_and_listed() -> None:
    cases = preferences(3)
    lengths = {"case-0": 10, "case-1": 11, "case-2": 12}
    fitting, excluded = fit_for_training(cases, lengths, 11)
    assert [case.case_id for case in fitting] == ["case-0", "case-1"]
    assert [(e.case_id, e.reason) for e in excluded] == [
        ("case-2", "too long: 12 tokens, at most 11")
    ]
    assert fit_for_training(cases, lengths, None)[1] == []


def test_options_that_make_no_sense_are_errors(recipe: Build) -> None:
    with pytest.raises(ConfigError, match="does not go with vote_targets shares"):
        recipe(margin=1.0)
    with pytest.raises(ConfigError, match=r"ties davidson.*label_smoothing") as caught:
        recipe(margin=1.0, label_smoothing=0.1)
    assert "vote_targets shares" in str(caught.value)
    with pytest.raises(ConfigError, match="follows from global_batch_cases"):
        recipe(gradient_accumulation_steps=4)
    with pytest.raises(ConfigError, match="dimension_weights"):
        recipe(dimension_weights="accuracy: 2")
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "num_train_epochs"):
        with pytest.raises(ConfigError, match=f"{name} is 0"):
            recipe(**{name: 0})
    with pytest.raises(ConfigError, match=r"learning_rate is nan.*margin is inf"):
        recipe(learning_rate=float("nan"), margin=float("inf"))
    with pytest.raises(ConfigError, match="dimension_weights"):
        recipe(dimension_weights='{"accuracy": NaN}')
    with pytest.raises(ConfigError, match="Did you mean 'accuracy'"):
        recipe(dimension_weights='{"acuracy": 2}').trainer()
    ranked = preferences(4, answers=3)
    for option in ({"ties": "rao_kupper"}, {"label_smoothing": 0.1}):
        mixed = [*preferences(6, ties=True), *ranked]
        with pytest.raises(ConfigError, match="pairs of answers alone"):
            recipe(train=mixed, **option).trainer()


def test_wrong_input_is_known_before_a_model_is_loaded(recipe: Build) -> None:
    def check(**options: Any) -> None:
        built = recipe(**options)
        load_objective("bradley_terry").check(built.run, DIMENSIONS, built.train, built.development)

    check()
    with pytest.raises(ConfigError, match="Did you mean 'accuracy'"):
        check(dimension_weights='{"acuracy": 2}')
    with pytest.raises(ConfigError, match="pairs of answers alone"):
        check(train=preferences(4, answers=3), label_smoothing=0.1)
    even = {name: PairLabel((0.5, 0.0, 0.5), 2) for name in DIMENSIONS}
    undecided = [dataclasses.replace(case, labels=even) for case in preferences(2)]
    with pytest.raises(DataError, match="none of 2 development cases"):
        check(development=undecided, vote_targets="majority")


def test_cases_without_a_majority_are_not_learned_from(recipe: Build, caplog: Any) -> None:
    undecided = preference(1)
    labels = dict.fromkeys(undecided.labels, type(undecided.labels["accuracy"])((0.5, 0.0, 0.5), 2))
    undecided = type(undecided)(**{**_fields(undecided), "labels": labels, "case_id": "even"})
    built = recipe(
        train=[*preferences(6), undecided], vote_targets="majority", ties="none", margin=0.5
    )
    trainer = built.trainer()
    assert "1 of 7 cases carry no label" in caplog.text
    assert len(trainer.train_dataset) == 6
    with pytest.raises(DataError, match="none of 1 training cases"):
        recipe(train=[undecided], vote_targets="majority", ties="none").trainer()


def _fields(case: Any) -> dict[str, Any]:
    return {name: getattr(case, name) for name in type(case).__slots__}


def test_every_objective_loads(recipe: Build) -> None:
    for name in OBJECTIVES:
        heads = load_objective(name).head_spec is not None
        assert heads == (not name.startswith("judge_"))
    assert load_objective("bradley_terry").readout(recipe().run) == "reward"


def test_full_fine_tuning_trains_and_resumes(tmp_path: Path) -> None:
    options = {"adapter": AdapterOptions(use_peft=False), "max_steps": 2, "save_steps": 1,
               "eval_steps": 1, "load_best_model_at_end": False}  # fmt: skip
    wanted = trained_state(make_recipe(tmp_path / "a", **options))
    resumed = make_recipe(tmp_path / "a", **options)
    resumed.trainer().train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-1"))
    state = dict(resumed.model.named_parameters())
    assert all(torch.equal(wanted[name], state[name]) for name in wanted)
