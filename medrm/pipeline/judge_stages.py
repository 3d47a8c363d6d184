"""What a judge's run measures: base and adapter, each generating and with the JSON given."""

from __future__ import annotations

import logging

from medrm.models.identity import saved_identity
from medrm.pipeline.context import Workbench, stage
from medrm.schema import DIMENSIONS
from medrm.scorer.open import folder_of

logger = logging.getLogger(__name__)


def before(bench: Workbench) -> dict[str, float]:
    """Measures the base by the run's readout, as the adapter will be: there is none to choose."""
    model = bench.base()
    bench.check_image(model)
    with stage("before"):
        bench.measure(bench.judge(model), "before", weights=bench.base_weights)
    spec = bench.judge_spec
    apart = spec is not None and spec.per_dimension
    if apart or not set(DIMENSIONS) <= set(bench.material.dimensions):
        logger.info(
            "No official number for text: the released scorer reads one reply about %s.",
            ", ".join(DIMENSIONS),
        )
    return {}


def controls_before(bench: Workbench) -> list[str]:
    """Measures the base with the JSON given, and the adapter to go on from."""
    wanted = bench.run.evaluation.controls
    done: list[str] = []
    given = [name for name in ("base_skeleton", "base_averaged") if name in wanted]
    if given and bench.can_be_given:
        with stage("base_skeleton"):
            scorer = bench.judge(bench.base(), "skeleton")
            bench.measure(scorer, "base_skeleton", weights=bench.base_weights)
        bench.measure_averaged(scorer, "base_skeleton", "base_averaged")
        done += [name for name in given if bench.folder(name).is_dir()]
    if "init_adapter" in wanted and bench.run.judge.init_adapter:
        with stage("init_adapter"):
            weights = saved_identity(folder_of(bench.run.judge.init_adapter))
            bench.measure(bench.judge(bench.trainable()), "init_adapter", weights=weights)
        done.append("init_adapter")
    return done


def after(bench: Workbench) -> list[str]:
    """Measures the adapter as it was saved, loaded anew; returns the controls made of it."""
    given = "skeleton" in bench.run.evaluation.controls and bench.can_be_given
    scorer, *others = bench.saved(None, *(["skeleton"] if given else []))
    with stage("after"):
        bench.measure(scorer, "after", weights=bench.saved_weights)
    done = bench.measure_pictures(scorer)
    for other in others:
        with stage(other.readout):
            bench.measure(other, other.readout, weights=bench.saved_weights)
        done.append(other.readout)
    return done
