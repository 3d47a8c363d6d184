"""Checkpoints are whole or none: drafted, sealed, found damaged, passed over."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from damages import KINDS
from judging import Judging
from preferences import Recipe, make_recipe
from torch import Tensor
from transformers import Trainer

from medrm.errors import AdapterError, ConfigError
from medrm.files import DRAFT
from medrm.integrity import MANIFEST, damage
from medrm.objectives.whole_checkpoints import checkpoints_of, problems_of
from medrm.pipeline.checkpoints import checkpoint_of, last_checkpoint

STEPS = {"max_steps": 3, "save_steps": 1, "eval_steps": 1, "save_total_limit": 3}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recipe]:
    """A finished training with three checkpoints, and its recipe."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    recipe = make_recipe(folder, **STEPS)
    recipe.trainer().train()
    return folder, recipe


@pytest.fixture
def run(finished: tuple[Path, Recipe], tmp_path: Path) -> Path:
    """A copy of the finished training's folder."""
    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run"


def trained(model: Any) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def best_of(checkpoint: Path) -> str:
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return str(state["best_model_checkpoint"])


def test_checkpoints_are_sealed_and_name_the_best_where_it_lies(
    finished: tuple[Path, Recipe],
) -> None:
    folder, _ = finished
    checkpoints = checkpoints_of(folder)
    assert sorted(checkpoints) == [1, 2, 3]
    for step, checkpoint in checkpoints.items():
        assert damage(checkpoint) == []
        best = Path(best_of(checkpoint))
        assert best.parent == folder
        assert int(best.name.removeprefix("checkpoint-")) <= step
    assert not list(folder.glob(f"{DRAFT}*"))
    # Libraries write some files for the owner alone.
    modes = {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}
    assert len(modes) == 1


def test_every_damage_to_every_file_passes_a_checkpoint_over(run: Path) -> None:
    newest, copy = run / "checkpoint-3", run / "copy"
    files = [path.relative_to(newest) for path in newest.rglob("*") if path.is_file()]
    assert {"adapter_model.safetensors", "optimizer.pt", MANIFEST} <= set(map(str, files))
    copy.mkdir()
    for name in files:
        for kind, apply in KINDS.items():
            shutil.copy2(newest / name, copy / "kept")
            apply(newest / name)
            problems = problems_of(newest, best=False)
            if (str(name), kind) == (MANIFEST, "missing"):
                assert problems == []  # as of an earlier version, and all that is needed is there
            else:
                assert problems, (name, kind)
                assert str(name) in problems[0] or str(name) == MANIFEST
            shutil.rmtree(newest / name, ignore_errors=True)
            (newest / name).unlink(missing_ok=True)
            shutil.copy2(copy / "kept", newest / name)
    assert problems_of(newest, best=True) == []


def test_the_one_before_is_taken_and_what_is_wrong_is_told(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert last_checkpoint(run, best=False) == str(run / "checkpoint-3")
    (run / "checkpoint-3" / "optimizer.pt").write_bytes(b"")
    (run / "checkpoint-2" / "scheduler.pt").unlink()
    with caplog.at_level(logging.WARNING):
        assert last_checkpoint(run, best=False) == str(run / "checkpoint-1")
        assert last_checkpoint(run, best=False) == str(run / "checkpoint-1")
    assert len(caplog.messages) == 2  # each told once
    assert "checkpoint-3 is damaged" in caplog.messages[0]
    assert "optimizer.pt has 0 bytes instead of" in caplog.messages[0]
    assert "scheduler.pt is missing" in caplog.messages[1]
    (run / "checkpoint-1" / "rng_state.pth").write_bytes(b"?")
    with caplog.at_level(logging.WARNING):
        assert last_checkpoint(run, best=False) is None
    assert "the training starts anew" in caplog.messages[-1]
    assert last_checkpoint(run / "nowhere") is None


def test_a_checkpoint_whose_best_one_is_damaged_is_passed_over(run: Path) -> None:
    for checkpoint in checkpoints_of(run).values():  # as if the first had been the best
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        state |= {"best_model_checkpoint": "elsewhere/checkpoint-1", "best_global_step": 1}
        (checkpoint / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")
        (checkpoint / MANIFEST).unlink()
    assert last_checkpoint(run) == str(run / "checkpoint-3")
    shutil.rmtree(run / "checkpoint-1")
    assert last_checkpoint(run) is None
    assert last_checkpoint(run, best=False) == str(run / "checkpoint-3")


def test_a_named_checkpoint_that_is_damaged_is_refused(
    run: Path, finished: tuple[Path, Recipe]
) -> None:
    arguments = finished[1].run.training
    named = run / "checkpoint-2"
    try:
        arguments.resume_from_checkpoint = str(named)
        assert checkpoint_of(finished[1].run, run) == str(named)
        (named / "adapter_model.safetensors").unlink()
        with pytest.raises(ConfigError, match=r"adapter_model.safetensors is missing"):
            checkpoint_of(finished[1].run, run)
    finally:
        arguments.resume_from_checkpoint = None


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "adapter_model.safetensors"])
def test_a_checkpoint_of_an_earlier_version_counts_when_its_pieces_load(
    run: Path, name: str
) -> None:
    newest = run / "checkpoint-3"
    (newest / MANIFEST).unlink()
    assert last_checkpoint(run, best=False) == str(newest)
    data = (newest / name).read_bytes()
    (newest / name).write_bytes(data[: len(data) // 2])
    assert any(problem.startswith(name) for problem in problems_of(newest, best=False))
    (newest / name).unlink()
    assert any("is missing" in problem for problem in problems_of(newest, best=False))
    (newest / name).write_bytes(data)
    (newest / "trainer_state.json").write_text('{"step"')
    assert problems_of(newest, best=False)


def test_a_damaged_best_checkpoint_ends_the_training_with_words(tmp_path: Path) -> None:
    trainer = make_recipe(tmp_path / "run", **STEPS).trainer()
    save = trainer._save_checkpoint

    def save_and_damage(*arguments: Any) -> None:
        save(*arguments)
        best = Path(str(trainer.state.best_model_checkpoint))
        (best / "adapter_model.safetensors").write_bytes(b"")

    trainer._save_checkpoint = save_and_damage
    with pytest.raises(AdapterError, match=r"adapter_model.safetensors has 0 bytes"):
        trainer.train()


def test_a_save_that_fails_leaves_nothing_and_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_recipe(tmp_path / "run", **STEPS).trainer()
    write = Trainer._save_rng_state

    def fail_in_the_second(self: Any, folder: str) -> None:
        write(self, folder)
        if self.state.global_step == 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Trainer, "_save_rng_state", fail_in_the_second)
    with pytest.raises(OSError, match="No space"):
        trainer.train()
    assert sorted(path.name for path in (tmp_path / "run").glob("*-*")) == ["checkpoint-1"]
    assert last_checkpoint(tmp_path / "run") == str(tmp_path / "run" / "checkpoint-1")


def test_a_moved_run_ends_with_its_best_checkpoint(run: Path) -> None:
    """The path that was recorded leads to another folder, which is gone."""
    recorded = [best_of(run / f"checkpoint-{step}") for step in (1, 2, 3)]
    resumed = make_recipe(run, **STEPS)
    trainer = resumed.trainer()
    checkpoint = run / "checkpoint-3"
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    state["best_model_checkpoint"] = "gone/" + Path(recorded[-1]).name
    (checkpoint / MANIFEST).unlink()
    (checkpoint / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert trainer.state.best_model_checkpoint == str(run / Path(recorded[-1]).name)


def test_older_checkpoints_go_when_the_new_one_is_whole(tmp_path: Path) -> None:
    """A damaged one ahead of the step goes first, and never instead of a whole one."""
    options = {**STEPS, "save_total_limit": 1, "load_best_model_at_end": False}
    options["metric_for_best_model"] = None
    trainer = make_recipe(tmp_path / "run", **options, eval_strategy="no").trainer()
    (tmp_path / "run" / "checkpoint-9").mkdir(parents=True)
    seen: list[list[int]] = []
    remove = trainer._remove_older

    def watched(run_folder: Path, newest: Path) -> None:
        assert damage(newest) == []
        seen.append(sorted(checkpoints_of(run_folder)))
        remove(run_folder, newest)

    trainer._remove_older = watched
    trainer.train()
    assert seen == [[1, 9], [1, 2], [2, 3]]
    assert sorted(checkpoints_of(tmp_path / "run")) == [3]


def test_a_bradley_terry_run_with_a_damaged_newest_checkpoint_ends_alike(
    finished: tuple[Path, Recipe], run: Path
) -> None:
    (run / "checkpoint-3" / "optimizer.pt").write_bytes(b"")
    (run / "checkpoint-2" / "adapter_model.safetensors").write_bytes(b"")
    resumed = make_recipe(run, **STEPS)
    resumed.trainer().train(resume_from_checkpoint=last_checkpoint(run))
    state, wanted = trained(resumed.model), trained(finished[1].model)
    assert all(torch.equal(wanted[name], state[name]) for name in wanted)
    for step in (1, 2, 3):
        assert damage(run / f"checkpoint-{step}") == []


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["judge_sft", "judge_dpo", "judge_grpo"])
@pytest.mark.parametrize(
    "name", ["optimizer.pt", "adapter_model.safetensors", "trainer_state.json"]
)
def test_a_judge_with_a_damaged_newest_checkpoint_ends_alike(
    objective: str, name: str, judging: Callable[..., Judging], tmp_path: Path
) -> None:
    options = {**STEPS, "save_strategy": "steps"}
    wanted = judging(objective, "run", **options).trained()
    data = bytearray((tmp_path / "run" / "checkpoint-3" / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "run" / "checkpoint-3" / name).write_bytes(data)
    resumed = judging(objective, "run", **options)
    point = last_checkpoint(tmp_path / "run")
    assert point == str(tmp_path / "run" / "checkpoint-2")
    resumed.trainer().train(resume_from_checkpoint=point)
    state = resumed.state()
    assert all(torch.equal(wanted[key], state[key]) for key in wanted)
