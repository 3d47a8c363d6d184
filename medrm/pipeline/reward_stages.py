"""What a reward model's run measures: the base zero-shot, heads without an adapter, the adapter."""

from __future__ import annotations

import logging
import shutil

from accelerate import PartialState

from medrm.data.image_ablations import PICTURE_CONTROLS
from medrm.pipeline.context import Workbench, stage
from medrm.pipeline.fit import add_statistics, train_probe
from medrm.scorer.readouts.reward import RewardModel

logger = logging.getLogger(__name__)


def before(bench: Workbench) -> dict[str, float]:
    """Measures the base by each zero-shot readout; `before` is the better on development cases.

    Returns the readouts' accuracies on these.
    """
    model = bench.base()
    bench.check_image(model)
    held_out = bench.development_benchmark()
    accuracy: dict[str, float] = {}
    for name, scorer in bench.zero_shot(model, (bench.material.primary,)):
        accuracy[name] = bench.measure(scorer, f"{name}/development", held_out, bench.base_weights)
    for name, scorer in bench.zero_shot(model, bench.material.dimensions):
        with stage(name):
            bench.measure(scorer, name, weights=bench.base_weights)
        if name == "zero_shot_verdict":
            bench.measure_averaged(scorer, name, "zero_shot_averaged")
    better = max(accuracy, key=lambda name: accuracy[name])
    if PartialState().is_main_process:
        for name in accuracy:
            shutil.rmtree(bench.folder(f"{name}/development"))
        shutil.copytree(bench.folder(better), bench.folder("before"), dirs_exist_ok=True)
    logger.info(
        "before: %s (development: %s)",
        better,
        ", ".join(f"{name} {value:.3f}" for name, value in accuracy.items()),
    )
    return accuracy


def controls_before(bench: Workbench) -> list[str]:
    """Measures a head as it was drawn, and one trained on the frozen base; returns all controls."""
    wanted = bench.run.evaluation.controls
    headed = bench.objective.head_spec is not None
    if headed and "untrained_head" in wanted:
        with stage("untrained_head"):
            bench.measure(bench.reward_model(bench.with_head()), "untrained_head")
    if headed and "frozen_probe" in wanted:
        with stage("frozen_probe"):
            bench.measure(bench.reward_model(train_probe(bench)), "frozen_probe")
    return [name for name in wanted if name not in PICTURE_CONTROLS and bench.folder(name).is_dir()]


def after(bench: Workbench) -> list[str]:
    """Measures the adapter as it was saved, loaded anew, with the images, others and none."""
    (scorer,) = bench.saved(None)
    if isinstance(scorer, RewardModel):
        add_statistics(bench, scorer)
    with stage("after"):
        bench.measure(scorer, "after", weights=bench.saved_weights)
    return bench.measure_pictures(scorer)
