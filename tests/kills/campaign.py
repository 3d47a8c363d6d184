"""Kills runs of one objective over and over, starts them again, and compares their ends.

`python campaign.py OBJECTIVE --kills N --seed S --output FOLDER` prints one JSON object: the kills,
and what differed in the end. It is a process of its own, whose children are forked: they find all
libraries imported, and no thread of autograd that a fork would lose.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from moments import OF_TRAINING, SAVES, Moment, Plan, SharedMoment, Watch
from pipeline.entry import load_main
from tiny import save_tiny

from medrm.data.phantom.phantom_set import write_phantom
from medrm.objectives.judge import judge_grpo
from medrm.pipeline import manifest

_LONGEST = 240.0
"""Seconds after which an attempt counts as hung."""

_STATE = ("checkpoint-*", ".*", "*.lock", "runs")
"""What of a run folder is there for running."""

_WEIGHTS = "adapter/adapter_model.safetensors"

RUNS: dict[str, dict[str, Any]] = {
    # Two epochs of 7 steps: 14 cases, 2 in a step; the end is the best checkpoint.
    "bradley_terry": {
        "global_batch_cases": 2, "max_steps": 14, "save_steps": 2, "eval_steps": 2,
        "save_total_limit": 2, "lora_dropout": 0.1, "controls": "zero_shot_likelihood,frozen_probe",
    },
    # Two epochs of 7 steps: 28 rows, 2 x 2 in a step; the end is the last step, saved out of turn.
    "judge_sft": {
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 13,
        "save_steps": 2, "eval_steps": 3, "save_total_limit": 1, "lora_dropout": 0.1,
        "load_best_model_at_end": "false", "controls": "blank_images", "max_new_tokens": 4,
    },
    # Two epochs of 6 steps: 24 of 28 prompts, each answered twice; generated for two steps at once.
    "judge_grpo": {
        "per_device_train_batch_size": 8, "steps_per_generation": 2, "num_generations": 2,
        "max_completion_length": 4, "max_steps": 12, "save_steps": 1, "learning_rate": 1e-3,
        "controls": "init_adapter", "max_new_tokens": 4,
    },
    # Two folds, each with two epochs of 4 steps or so: 12 cases, 3 in a step.
    "crossfit": {
        "crossfit": 2, "global_batch_cases": 2, "max_steps": 8, "save_steps": 1, "eval_steps": 1,
        "controls": "zero_shot_verdict,zero_shot_likelihood",
    },
}  # fmt: skip
"""Options of the run of each objective."""

STEPS_PER_EPOCH = {"bradley_terry": 7, "judge_sft": 7, "judge_grpo": 6, "crossfit": 4}


@dataclass(frozen=True)
class Kill:
    """A kill that happened.

    Attributes:
        run: which run it was.
        phase: in which it was.
        step: how many had been made.
        epoch: of the training; None: outside it.
        again: whether it had gone on within this epoch, after a kill in the same one.
        delayed: whether it was killed some time after a tick, not at one.
    """

    run: int
    phase: str
    step: int
    epoch: int | None
    again: bool
    delayed: bool


@dataclass
class Campaign:
    """What happened to the runs of one objective."""

    objective: str
    kills: list[Kill] = field(default_factory=list)
    missed: int = 0
    runs: int = 0
    differences: list[str] = field(default_factory=list)


def by_letters(completions: Any, **columns: Any) -> list[float]:
    """Rewards some letters more than others, so that a random model has something to learn."""
    return [sum(map(ord, completion[0]["content"])) % 17 / 17 for completion in completions]


def arguments_of(objective: str, folder: Path) -> list[str]:
    """Returns the command of a run, the same each time that it is started."""
    common = {
        "objective": "bradley_terry" if objective == "crossfit" else objective,
        "model_name_or_path": folder / "base",
        "train_data": folder / "data" / "votes.jsonl", "output_dir": "run", "logging_steps": 3,
        "report_to": "none", "warmup_steps": 0,
    }  # fmt: skip
    if objective == "judge_grpo":
        common["init_adapter"] = folder / "start" / "run" / "adapter"
    options = {**common, **RUNS[objective]}
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def attempt(command: Sequence[str], folder: Path, plan: Plan | None) -> tuple[Moment | None, Any]:
    """Starts a run, and kills it when its plan says so.

    Returns:
        where it was when it was killed, None when it ended by itself; and how often it ticked in
        each phase and step.

    Raises:
        RuntimeError: it failed, or hung.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shared, log = SharedMoment(), folder / "log.txt"
    pid = os.fork()
    if pid == 0:
        _run(command, folder, Watch(shared, plan), log)
    deadline = time.monotonic() + _LONGEST
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            break
        armed = plan is not None and plan.delay is not None and shared.read().armed
        if armed or time.monotonic() > deadline:
            time.sleep(plan.delay if armed else 0.0)
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            if not armed:
                raise RuntimeError(f"hung in {shared.read()}:\n{log.read_text()[-3000:]}")
            break
        time.sleep(0.0005)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return shared.read(), None
    if os.waitstatus_to_exitcode(status):
        raise RuntimeError(f"failed with {status}:\n{log.read_text()[-3000:]}")
    return None, json.loads((folder / "ticks.json").read_text())


def _run(command: Sequence[str], folder: Path, watch: Watch, log: Path) -> None:
    """Is the forked process; never returns."""
    code = 1
    try:
        os.chdir(folder)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        faulthandler.dump_traceback_later(_LONGEST - 10)
        watch.install()
        code = load_main("recipes/train_rm.py")(list(command))
        ticks = [[*key, count] for key, count in watch.ticks.items()]
        Path("ticks.json").write_text(json.dumps(ticks))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def contents(run: Path) -> dict[str, bytes]:
    """Returns what a run left, but for what says how it came to it."""
    state = {path for pattern in _STATE for path in run.rglob(pattern)}
    files = (path for path in sorted(run.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in files
        if not state & {path, *path.parents}
    }


def plans(rng: random.Random, ticks: Any) -> list[Plan]:
    """Draws when one run is killed: in every phase, in both epochs, twice in one, ever later.

    Args:
        rng: of the campaign.
        ticks: how often the straight run ticked, in each phase and step.
    """
    counts = {(phase, step): count for phase, step, count in ticks}
    last = max(step for _, step in counts)

    def of(phases: Sequence[str], low: int, high: int) -> Plan:
        places = [key for key in counts if key[0] in phases and low <= key[1] <= high]
        phase, step = rng.choice(places)
        delay = None if phase in SAVES or rng.random() < 0.5 else rng.uniform(0, 0.05)
        # Outside the training a process that goes on has made no step.
        earliest = step if phase in OF_TRAINING else 0
        # What is in the cache is not written again.
        most = min(counts[phase, step], 6) if phase == "start" else counts[phase, step]
        return Plan(phase, earliest, rng.randint(1, most), delay)

    third = last // 3
    inside = [
        of(("step", "training"), 0, third),
        of(("checkpoint",), 0, third),
        of(("step", "develop"), third + 1, 2 * third),
        of(("checkpoint",), third + 1, 2 * third),
        of(("step",), 2 * third, last),
        of(("step",), 2 * third, last),
        of(("checkpoint",), 2 * third + 1, last),
    ]
    inside.sort(key=lambda plan: plan.step)
    probe = [of(("probe",), 0, last)] if any(phase == "probe" for phase, _ in counts) else []
    return [
        of(("start", "measure"), 0, 0),
        *probe,
        *inside,
        *(of((phase,), 0, last) for phase in ("adapter", "measure", "report")),
    ]


def plans_of_folds(rng: random.Random, ticks: Any) -> list[Plan]:
    """Draws when a run of two folds is killed: the second round falls into the second fold."""
    return [*plans(rng, ticks)[:-2], *plans(rng, ticks)[1:]]


def newest_checkpoint(run: Path) -> int:
    """Returns the step of the last checkpoint that stands in its place, 0 without one."""
    folds = [path for path in sorted(run.glob("folds/*")) if any(path.glob("checkpoint-*"))]
    checkpoints = (folds[-1] if folds else run).glob("checkpoint-*")
    return max((int(path.name[11:]) for path in checkpoints), default=0)


def campaign(objective: str, kills: int, seed: int, output: Path) -> Campaign:
    """Kills runs until there were enough kills, and compares what they left in the end."""
    rng, told = random.Random(f"{objective}/{seed}"), Campaign(objective)
    save_tiny("qwen2_5_vl", output / "base")
    write_phantom(output / "data", cases=20, seed=11)
    judge_grpo.rewards_of = lambda prompt: [by_letters]
    manifest.git_commit = lambda: None  # who edits the checkout meanwhile changes no run
    if objective == "judge_grpo":
        start = [*arguments_of("judge_sft", output), "--max_steps", "2", "--controls", "none"]
        attempt(start, output / "start", None)
    command = arguments_of(objective, output)
    _, ticks = attempt(command, output / "straight", None)
    straight = contents(output / "straight" / "run")
    if objective == "judge_grpo":
        begun = (output / "start" / "run" / _WEIGHTS).read_bytes()
        assert begun != straight[_WEIGHTS], "nothing was learned"
    while len(told.kills) < kills and told.runs < kills:
        told.runs += 1
        folder = output / f"run-{told.runs}"
        for plan in (plans_of_folds if objective == "crossfit" else plans)(rng, ticks):
            resumed = newest_checkpoint(folder / "run")
            moment, _ = attempt(command, folder, plan)
            if moment is None:
                told.missed += 1
                sys.stderr.write(f"missed {plan}\n")
                break
            told.kills.append(kill_of(told, moment, plan, resumed))
            sys.stderr.write(f"{plan}: {told.kills[-1]}\n")
        else:
            attempt(command, folder, None)
        told.differences += differences(folder.name, contents(folder / "run"), straight)
    return told


def kill_of(told: Campaign, moment: Moment, plan: Plan, resumed: int) -> Kill:
    """Returns what is told of a kill.

    Args:
        told: so far.
        moment: where the run was.
        plan: of its death.
        resumed: the step from which it had gone on.
    """
    in_training, steps = moment.phase in OF_TRAINING, STEPS_PER_EPOCH[told.objective]
    epoch = moment.epoch if in_training else None
    last = told.kills[-1] if told.kills and told.kills[-1].run == told.runs else None
    again = in_training and last is not None and last.epoch == epoch
    again = again and resumed % steps > 0 and resumed // steps == epoch
    return Kill(told.runs, moment.phase, moment.step, epoch, again, plan.delay is not None)


def differences(name: str, left: dict[str, bytes], straight: dict[str, bytes]) -> list[str]:
    """Returns the files of a run that are not those of the straight one."""
    return [
        f"{name}: {path}"
        for path in sorted(left.keys() | straight.keys())
        if left.get(path) != straight.get(path)
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("objective", choices=RUNS)
    parser.add_argument("--kills", type=int)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    told = campaign(options.objective, options.kills, options.seed, options.output)
    sys.stdout.write(json.dumps(asdict(told)) + "\n")


if __name__ == "__main__":
    main()
