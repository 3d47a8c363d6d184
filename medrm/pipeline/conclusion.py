"""The end of a run: comparison, model card, page and push, once for what has been measured."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medrm.config.parse import Run
from medrm.errors import first_line, refuse
from medrm.evaluation.benchmark import Benchmark
from medrm.evaluation.compare import compare
from medrm.evaluation.folds import Fold, notes_of_folds, pool
from medrm.evaluation.pages.report_page import write_page
from medrm.evaluation.tables.terminal import print_comparison
from medrm.files import discard, file_digest
from medrm.hub.card import write_card
from medrm.hub.publish import publish
from medrm.hub.release import Target
from medrm.integrity import read_record, write_record
from medrm.pipeline.context import DEVELOPMENT, RunContext
from medrm.pipeline.run_folder import FINISHED, FOLDS
from medrm.pipeline.stages import measured_controls
from medrm.pipeline.zero_shot import in_all, read_choice, settle_before

logger = logging.getLogger(__name__)


def conclude(context: RunContext) -> None:
    """Compares `after` with `before` and the controls, and publishes the adapter if asked.

    Raises:
        ConfigError: `before` or `after` is not measured.
    """
    run, output, controls = context.run, context.output, measured_controls(context)
    _check_measured([context])

    def derive() -> str:
        _compare_rows(output, run, context.splits.primary, controls)
        write_card(context.adapter, output)
        return f"adapter: {context.adapter}"

    names = ("before", "after", *controls)
    evaluations = {name: context.folder(name) for name in names}
    _once(run, output, evaluations, derive, [context.adapter / "README.md"])


def conclude_folds(run: Run, benchmark: Benchmark, contexts: Sequence[RunContext]) -> None:
    """Pools the folds of a cross-fitted run and compares.

    Raises:
        ConfigError: `before` or `after` of a fold is not measured.
    """
    output, primary = Path(run.training.output_dir), contexts[0].splits.primary
    _check_measured(contexts)
    choices = [read_choice(context.output) for context in contexts]
    if all(choices):
        settle_before([context.folder("") for context in contexts], choices)
    names = ("before", "after", *in_all([measured_controls(context) for context in contexts]))

    def derive() -> str:
        for name in names:
            folds = [
                Fold(
                    context.folder(name),
                    context.folder(DEVELOPMENT) if name == "after" else None,
                )
                for context in contexts
            ]
            pooled = output / "evaluation" / name
            discard(pooled)
            pool(folds, benchmark, primary, pooled)
        notes = notes_of_folds(run.data.crossfit, run.training.seed)
        _compare_rows(output, run, primary, names[2:], notes)
        return (
            f"{len(contexts)} adapters, each of which has seen a part of what is measured, so that "
            f"none is published: {output / FOLDS / '*' / 'adapter'}"
        )

    evaluations = {
        f"{number}/{name}": context.folder(name)
        for number, context in enumerate(contexts, start=1)
        for name in (*names, DEVELOPMENT)
        if context.holds(name)
    }
    _once(run, output, evaluations, derive)


def _check_measured(contexts: Iterable[RunContext]) -> None:
    """Refuses to compare what is not there: a stage was left out, or is another adapter's."""
    missing = [
        f"{context.folder(name)} is not measured"
        for context in contexts
        for name, weights in (
            ("before", None),
            ("after", context.saved_weights if context.is_trained else ""),
        )
        if not context.holds(name, weights)
    ]
    advice = "The stage compare needs the stages before, train and after: add what is missing to"
    refuse(missing, f"{advice} --stages, or start them first.")


def _once(
    run: Run,
    output: Path,
    evaluations: Mapping[str, Path],
    derive: Callable[[], str],
    cards: Sequence[Path] = (),
) -> None:
    """Derives what is shown of evaluations, unless it was derived of the very same before.

    Args:
        run: all options.
        output: the run folder.
        evaluations: name to folder of what is compared.
        derive: writes the comparison and what follows from it; returns what is said in the end.
        cards: of the models, written by `derive` as well.
    """
    record, page = output / FINISHED, output / "report.html"
    derived = [page, *cards]
    now: dict[str, Any] = {
        "reports": {
            name: file_digest(folder / "report.json") for name, folder in evaluations.items()
        },
        "images": not run.evaluation.no_images,
        "pushed_to": run.training.hub_model_id if run.training.push_to_hub else None,
    }
    earlier = _readable(record)
    if not run.training.push_to_hub:  # what was pushed once stays pushed
        now["pushed_to"] = earlier.get("pushed_to")
    comparison = output / "comparison.json"
    headline = _readable(comparison).get("headline")
    if headline is not None:
        now["comparison"] = file_digest(comparison)
        earlier.setdefault("comparison", now["comparison"])  # earlier versions recorded none
    if earlier == now and headline and _is_whole(page) and all(map(Path.is_file, derived)):
        logger.info(
            "%s is finished: nothing was left to do.\n%s\nreport: %s", output, headline, page
        )
        return
    record.unlink(missing_ok=True)
    last_line = derive()
    logger.info("report: %s\n%s", write_page(output), last_line)
    if run.training.push_to_hub:
        where = (run.training.hub_model_id, run.training.hub_revision)
        published = publish(output, Target(*where, private=run.training.hub_private_repo))
        logger.info("%s", published.described())
    write_record(record, {**now, "comparison": file_digest(comparison)})


def _readable(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file that is written anew where it is damaged: then nothing."""
    try:
        return read_record(path) if os.path.lexists(path) else {}
    except (OSError, ValueError) as error:
        logger.warning("%s is damaged, and is written anew: %s", path, first_line(error))
        return {}


def _is_whole(page: Path) -> bool:
    """Returns whether a page of HTML has its end."""
    is_whole = page.is_file() and page.read_bytes().rstrip().endswith(b"</html>")
    if page.is_file() and not is_whole:
        logger.warning("%s is damaged, and is written anew", page)
    return is_whole


def _compare_rows(
    output: Path, run: Run, primary: str, controls: Sequence[str], notes: Sequence[str] = ()
) -> None:
    """Compares `after` with `before` and the controls; writes and prints the comparison.

    Args:
        output: the run folder.
        run: all options.
        primary: dimension of the headline.
        controls: names of the evaluation folders that stand beside the headline.
        notes: what the reader of the headline must know.
    """
    evaluations = output / "evaluation"
    comparison = compare(
        evaluations / "before",
        evaluations / "after",
        primary=primary,
        controls={name: evaluations / name for name in controls},
        allowed_differences=run.evaluation.allowed_differences,
        output_dir=output,
        notes=notes,
    )
    print_comparison(comparison)
