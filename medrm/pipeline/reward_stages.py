"""What a reward model's run measures: the base zero-shot, heads without an adapter, the adapter."""

from __future__ import annotations

import logging
import shutil

from accelerate import PartialState

from medrm.data.image_ablations import IMAGE_ABLATIONS
from medrm.pipeline.context import RunContext, stage
from medrm.pipeline.fit import add_statistics, train_probe
from medrm.scorer.readouts.reward import RewardModel

logger = logging.getLogger(__name__)


def before(context: RunContext) -> dict[str, float]:
    """Measures the base by each zero-shot readout; `before` is the better on development cases.

    Returns the readouts' accuracies on these.
    """
    model = context.base()
    context.check_image(model)
    held_out = context.development_benchmark()
    accuracy: dict[str, float] = {}
    for name, scorer in context.zero_shot(model, (context.splits.primary,)):
        accuracy[name] = context.measure(
            scorer, f"{name}/development", held_out, context.base_weights
        )
    for name, scorer in context.zero_shot(model, context.splits.dimensions):
        with stage(name):
            context.measure(scorer, name, weights=context.base_weights)
        if name == "zero_shot_verdict":
            context.measure_averaged(scorer, name, "zero_shot_averaged")
    better = max(accuracy, key=lambda name: accuracy[name])
    if PartialState().is_main_process:
        for name in accuracy:
            shutil.rmtree(context.folder(f"{name}/development"))
        shutil.copytree(context.folder(better), context.folder("before"), dirs_exist_ok=True)
    logger.info(
        "before: %s (development: %s)",
        better,
        ", ".join(f"{name} {value:.3f}" for name, value in accuracy.items()),
    )
    return accuracy


def controls_before(context: RunContext) -> list[str]:
    """Measures a head as it was drawn, and one trained on the frozen base; returns all controls."""
    wanted = context.run.evaluation.controls
    headed = context.objective.head_spec is not None
    if headed and "untrained_head" in wanted:
        with stage("untrained_head"):
            context.measure(context.reward_model(context.with_head()), "untrained_head")
    if headed and "frozen_probe" in wanted:
        with stage("frozen_probe"):
            context.measure(context.reward_model(train_probe(context)), "frozen_probe")
    return [
        name for name in wanted if name not in IMAGE_ABLATIONS and context.folder(name).is_dir()
    ]


def after(context: RunContext) -> list[str]:
    """Measures the adapter as it was saved, loaded anew, with the images, others and none."""
    (scorer,) = context.saved(None)
    if isinstance(scorer, RewardModel):
        add_statistics(context, scorer)
    with stage("after"):
        context.measure(scorer, "after", weights=context.saved_weights)
    return context.measure_pictures(scorer)
