"""What a judge's run measures: base and adapter, each generating and with the JSON given."""

from __future__ import annotations

import logging

from medrm.models.save_load import saved_identity
from medrm.pipeline.context import RunContext, stage
from medrm.schema import DIMENSIONS
from medrm.scorer.open import folder_of

logger = logging.getLogger(__name__)


def before(context: RunContext) -> dict[str, float]:
    """Measures the base by the run's readout, as the adapter will be: there is none to choose."""
    model = context.base()
    context.check_image(model)
    with stage("before"):
        context.measure(context.judge(model), "before", weights=context.base_weights)
    spec = context.judge_spec
    apart = spec is not None and spec.per_dimension
    if apart or not set(DIMENSIONS) <= set(context.splits.dimensions):
        logger.info(
            "No official number for text: the released scorer reads one reply about %s.",
            ", ".join(DIMENSIONS),
        )
    return {}


def controls_before(context: RunContext) -> list[str]:
    """Measures the base with the JSON given, and the adapter to go on from."""
    wanted = context.run.evaluation.controls
    done: list[str] = []
    given = [name for name in ("base_skeleton", "base_averaged") if name in wanted]
    if given and context.can_be_given:
        with stage("base_skeleton"):
            scorer = context.judge(context.base(), "skeleton")
            context.measure(scorer, "base_skeleton", weights=context.base_weights)
        context.measure_averaged(scorer, "base_skeleton", "base_averaged")
        done += [name for name in given if context.folder(name).is_dir()]
    if "init_adapter" in wanted and context.run.judge.init_adapter:
        with stage("init_adapter"):
            weights = saved_identity(folder_of(context.run.judge.init_adapter))
            context.measure(context.judge(context.trainable()), "init_adapter", weights=weights)
        done.append("init_adapter")
    return done


def after(context: RunContext) -> list[str]:
    """Measures the adapter as it was saved, loaded anew; returns the controls made of it."""
    given = "skeleton" in context.run.evaluation.controls and context.can_be_given
    scorer, *others = context.saved(None, *(["skeleton"] if given else []))
    with stage("after"):
        context.measure(scorer, "after", weights=context.saved_weights)
    done = context.measure_pictures(scorer)
    for other in others:
        with stage(other.readout):
            context.measure(other, other.readout, weights=context.saved_weights)
        done.append(other.readout)
    return done
