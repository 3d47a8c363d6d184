"""One recipe trained with several seeds, one run after the other, and compared over them.

Only the seed and the folder differ: the run of seed N in `OUTPUT/seed-N/` is, to the byte, what
`--seed N --output_dir OUTPUT/seed-N` makes by itself, so that seeds may also be dealt to jobs. With
the seed vary the head's and the adapter's first weights, the order of the cases, dropout and what
GRPO samples; the parts of the data and the base do not, so that all seeds are measured on the same
cases.
"""

from __future__ import annotations

import copy
import gc
import json
import logging
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import PartialState

from medrm.config.parse import Run
from medrm.errors import applying, refuse
from medrm.evaluation.seeds.seed_runs import SEED_FOLDER
from medrm.files import RUN_FILE
from medrm.pipeline.checkpoints import resume_point
from medrm.pipeline.compare_seeds import check_one_recipe, conclude_seeds
from medrm.pipeline.context import stage
from medrm.pipeline.train import train

logger = logging.getLogger(__name__)


def train_seeds(run: Run) -> None:
    """Runs the recipe with each of its seeds, or as it is where it names none.

    A seed that is finished does no work, so that a seed more in the list trains that one alone.

    Raises:
        MedrmError: as in `train`; options that do not go with several seeds.
    """
    output, seeds = Path(run.training.output_dir), run.job.seeds
    if seeds is None:
        train(run)
        return
    check_seeds(run, output, PartialState().num_processes)
    for number, seed in enumerate(seeds, start=1):
        with stage(f"seed {seed} ({number} of {len(seeds)})"):
            train(run_of_seed(run, seed))
        gc.collect()  # trainers contain reference cycles
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    if PartialState().is_main_process and "compare" in run.job.stages and len(seeds) > 1:
        conclude_seeds(output, only=seeds)
    PartialState().wait_for_everyone()


def run_of_seed(run: Run, seed: int) -> Run:
    """Returns the run of one seed, as `--seed` and `--output_dir` alone would give it."""
    arguments = copy.copy(run.training)
    arguments.seed = seed
    arguments.output_dir = str(Path(run.training.output_dir) / f"{SEED_FOLDER}{seed}")
    return replace(run, training=arguments, job=replace(run.job, seeds=None))


def check_seeds(run: Run, output: Path, processes: int) -> None:
    """Refuses what does not go with several seeds, or with those that lie there.

    Each run compares itself with its folder; here the last seed's is looked at before the first
    seed is trained.

    Args:
        run: all options.
        output: in which the folders of the seeds lie.
        processes: by which each seed is trained.

    Raises:
        ConfigError: all of it in one message.
    """
    point = run.training.resume_from_checkpoint
    checks = {
        "push_to_hub publishes one adapter, but each seed trains one; leave it out, and publish "
        "one of them with --seed": run.training.push_to_hub,
        f"resume_from_checkpoint {point} is the checkpoint of one run; leave it out: each seed "
        "goes on from its own": isinstance(resume_point(point), str),
        f"output_dir {output} holds a run of its own, so that no seeds can lie below it; give "
        "another --output_dir": (output / RUN_FILE).exists(),
    }
    refuse(applying(checks), "The options do not go with --seeds.")
    if not run.job.overwrite_output_dir:
        folders = [run_of_seed(run, seed).training.output_dir for seed in run.job.seeds or ()]
        planned = {
            "config": json.loads(json.dumps(run.resolved(), default=str)),
            "processes": processes,
            "data": {},
            "inputs": {},
        }
        check_one_recipe(map(Path, folders), planned=planned)
