"""What one run learns from and is measured on, checked before any model is loaded."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from medrm.config.options import DataOptions
from medrm.config.parse import Run
from medrm.data.case_set import CaseSet, dimensions_of, read_set
from medrm.data.contamination import LeakReport, find_leaks, same_pictures
from medrm.data.images import ImageFacts, image_problem
from medrm.data.medical.converted_set import joined_conversions
from medrm.data.mixture import Drawing, in_shares, read_training_set
from medrm.data.sources import Excluded
from medrm.data.splits import folds_by_cluster, parts_of, split_by_cluster
from medrm.data.store.indexed_cases import (
    CaseIndex,
    IndexedCases,
    StoredFacts,
    concatenate,
    label_column,
    select,
    stored_facts,
    unreadable_cases,
)
from medrm.data.store.joint_index import SET_GROUP
from medrm.errors import ConfigError, DataError, alike_together, nearest, refuse, report
from medrm.evaluation.benchmark import GROUPS, Benchmark, benchmark_from_cases
from medrm.evaluation.benchmark_loading import BenchmarkRequest, load_benchmark
from medrm.pipeline.data_splits import DataSplits
from medrm.pipeline.label_rules import label_rules
from medrm.progress_bar import counting
from medrm.schema import Case, PairLabel

logger = logging.getLogger(__name__)

SPLIT_SEED = 0
"""Seed of the splits: not the training seed, so that runs of several seeds share one test part."""

UNACCEPTABLE = "no answer is acceptable to most readers, so there is nothing to learn"
"""Why a case is set aside that is labelled `neither`."""

DigestPair = tuple[str, str]
"""The digests of two images that show the same picture."""


def prepare_data(run: Run) -> DataSplits:
    """Returns the run's cases, split by cluster, with every data problem raised or listed.

    Raises:
        DataError: nothing to train on, too many unusable training cases, a leak, an unlabelled
            dimension.
        ConfigError: a name that does not exist.
    """
    options = run.data
    learned = _read(options, trained=True)
    source = learned.source
    separate = options.train_data is not None and options.benchmark is not None
    benchmark = _read(options, trained=False) if separate else None
    facts, copies = _examine_images(source, benchmark)
    if benchmark is not None:
        of_both = {source.name: source.converted, benchmark.name: benchmark.source.converted}
        joined_conversions(of_both)
        fractions = (1 - options.development_share, options.development_share)
        train, development = _split(source, fractions, copies)
    else:
        train, development, test = _split(source, options.split_fractions, copies)
        benchmark = replace(
            benchmark_from_cases(learned.name, source, test),
            layout=learned.layout,
            groups=learned.groups,
        )
    return _checked(options, source, facts, train, development, benchmark)


def prepare_folds(run: Run) -> tuple[Benchmark, tuple[DataSplits, ...]]:
    """Returns one set as a benchmark, and for each fold what its model learns from and judges.

    Each fold is the benchmark of its splits; the other folds are split by cluster into training
    and development cases. So each case of the set is judged once, by a model that saw none of its
    images.

    Raises:
        DataError: as in `prepare_data`; fewer clusters than folds, or a dimension that not every
            model can learn.
        ConfigError: a name that does not exist.
    """
    options = run.data
    benchmark = _read(options, trained=True)
    source, cases = benchmark.source, benchmark.cases
    facts, copies = _examine_images(source, None)
    fractions = (1 - options.development_share, options.development_share)
    dimensions = _dimensions(options, cases)
    splits_of_folds = []
    fold_of_case = folds_by_cluster(cases, options.crossfit, SPLIT_SEED, copies)
    for fold in range(options.crossfit):
        learned = select(cases, np.flatnonzero(fold_of_case != fold))
        part_of_case = split_by_cluster(learned, fractions, SPLIT_SEED, copies)
        train, development = parts_of(learned, part_of_case, 2)
        judged = select(cases, np.flatnonzero(fold_of_case == fold))
        fold_benchmark = replace(
            benchmark_from_cases(benchmark.name, source, judged), groups=benchmark.groups
        )
        splits = _checked(options, source, facts, train, development, fold_benchmark)
        if splits.dimensions != dimensions:
            missing = ", ".join(set(dimensions) - set(splits.dimensions))
            raise DataError(
                f"{source.name!r} has too few labels for {missing}: cut into {options.crossfit} "
                "folds, one model has none to learn from. Name the dimensions to learn with "
                "--dimensions, or give fewer folds with --crossfit."
            )
        splits_of_folds.append(splits)
    return benchmark, tuple(splits_of_folds)


def _examine_images(
    source: CaseSet, benchmark: Benchmark | None
) -> tuple[StoredFacts, list[DigestPair]]:
    """Decodes each image once; returns what that showed, and the copies of pictures in the set."""
    indexes = [_index(source)] + ([] if benchmark is None else [_index(benchmark.source)])
    with counting("images") as progress:
        facts = stored_facts(indexes, progress)

    def copies() -> list[DigestPair]:
        pairs = same_pictures(source.cases, source.cases, facts, source.synthetic)
        return [(same.original.digest, same.copy.digest) for same in pairs]

    name = "copies-synthetic" if source.synthetic else "copies"
    return facts, list(map(tuple, _index(source).cached_json(name, copies)))


def _index(source: CaseSet) -> CaseIndex:
    assert isinstance(source.cases, IndexedCases)  # as `read_set` gives them
    return source.cases.case_index


def _split(
    source: CaseSet, fractions: Sequence[float], copies: list[DigestPair]
) -> list[Sequence[Case]]:
    """Splits a set once; the next run finds the same parts."""
    reality = "synthetic" if source.synthetic else "real"
    part_of_case = _index(source).cached_array(
        f"parts-{reality}-{SPLIT_SEED}-{'-'.join(map(repr, fractions))}",
        lambda: split_by_cluster(source.cases, fractions, SPLIT_SEED, copies),
    )
    return parts_of(source.cases, part_of_case, len(fractions))


def _leaks(
    train: Sequence[Case], benchmark: Benchmark, facts: StoredFacts, source: CaseSet
) -> LeakReport:
    """Returns what the benchmark shares with the training cases; found once for two sets."""
    assert isinstance(train, IndexedCases)
    identity = f"{benchmark.source.digest} {source.synthetic}".encode() + train.indices.tobytes()
    leaks = _index(source).cached_json(
        f"leaks-{hashlib.sha256(identity).hexdigest()[:32]}",
        lambda: dataclasses.asdict(find_leaks(train, benchmark.cases, facts, source.synthetic)),
    )
    return LeakReport(tuple(leaks.pop("fatal")), **leaks)


def _checked(
    options: DataOptions,
    source: CaseSet,
    facts: StoredFacts,
    train: Sequence[Case],
    development: Sequence[Case],
    benchmark: Benchmark,
) -> DataSplits:
    """Returns the splits of a run, with no problem left in them.

    Args:
        options: of the run.
        source: the set that is trained on.
        facts: of the images of source and benchmark.
        train: cases of the source to learn from.
        development: cases of the source that choose the checkpoint.
        benchmark: what is measured on.
    """
    dimensions = _dimensions(options, train)
    primary = _primary(options, dimensions)
    for name, cases in (("benchmark", benchmark.cases), ("development part", development)):
        if primary not in dimensions_of(cases):
            raise DataError(
                f"no case of the {name} is labelled on the primary dimension {primary!r}; name "
                "another with --primary_dimension, or give other data"
            )
    leaks = _leaks(concatenate(train, development), benchmark, facts, source)
    title = (
        f"Training data {source.name!r} and benchmark {benchmark.name!r} share content; a score on "
        "it would say nothing. Remove these cases from the training data:"
    )
    refuse(leaks.fatal, title, DataError)
    train, unusable_train = set_aside_unusable(train, dimensions, facts)
    train = in_shares(train, source.mixed, options.mixture_seed)
    development, unusable_development = set_aside_unusable(development, dimensions, facts)
    excluded = (*source.excluded, *unusable_train, *unusable_development)
    check_excluded(excluded, len(train) + len(development), options.max_excluded_share)
    if not train or not development:
        raise DataError(
            f"{source.name!r} leaves {len(train)} training and {len(development)} development "
            "cases; both need at least one labelled case. Give more cases or other shares."
        )
    return DataSplits(
        train, development, benchmark, dimensions, primary, excluded, facts, leaks, source
    )


def _read(options: DataOptions, *, trained: bool) -> Benchmark:
    """Reads the benchmark, or the set to train on; a benchmark keeps its published numbers."""
    rules = label_rules(options)
    departments = Path(options.department_map) if options.department_map else None
    images = Path(options.image_root) if options.image_root else None
    if trained and options.train_data is not None:
        caps = (options.max_cases_per_prompt, options.max_cases_per_image)
        drawing = Drawing(options.mixture_seed, *caps)
        conversion = options.image_conversion
        read = partial(
            read_set,
            rules=rules,
            department_map=departments,
            image_root=images,
            image_conversion=conversion,
        )
        source = read_training_set(options.train_data, drawing, read)
        several = len(source.mixed) > 1
        for part in source.mixed if several else ():
            set_aside = [
                replace(row, case_id=f"{part.name}/{row.case_id}") for row in part.case_set.excluded
            ]
            check_excluded(set_aside, len(part.case_set.cases), options.max_excluded_share)
        return Benchmark(source.name, source, (*GROUPS, SET_GROUP) if several else GROUPS)
    named = (str(options.benchmark), options.data_root, options.benchmark_name)
    asked = (*named, images, departments, options.image_conversion)
    return load_benchmark(BenchmarkRequest(*asked), rules=rules)


def _dimensions(options: DataOptions, train: Sequence[Case]) -> tuple[str, ...]:
    """Returns the dimensions to learn, canonical ones first and in their order."""
    labelled = dimensions_of(train)
    if not labelled:
        raise DataError("no training case carries a label; give votes or human_answer entries")
    if options.dimensions is None:
        return labelled
    missing = [name for name in options.dimensions if name not in labelled]
    if missing:
        raise DataError(
            f"no training label mentions the dimension {', '.join(missing)}; labelled are "
            f"{', '.join(labelled)}.{nearest(missing[0], labelled)}"
        )
    return tuple(dict.fromkeys(options.dimensions))


def _primary(options: DataOptions, dimensions: Sequence[str]) -> str:
    requested = options.primary_dimension or ["overall", "any"]
    for name in requested:
        if name in dimensions or name == "any":
            return dimensions[0] if name == "any" else name
    named = ", ".join(requested)
    raise ConfigError(
        f"primary_dimension is {named}; the run learns {', '.join(dimensions)}."
        f"{nearest(named, dimensions)}"
    )


def set_aside_unusable(
    cases: Sequence[Case], dimensions: Sequence[str], facts: Mapping[str, ImageFacts]
) -> tuple[Sequence[Case], list[Excluded]]:
    """Sets aside cases that cannot be trained on: an unreadable image, or no label to learn."""
    usable_cases = np.zeros(len(cases), dtype=np.bool_)
    for name in dimensions:
        usable_cases |= label_column(cases, name)["votes"] > 0
    usable_cases &= ~unreadable_cases(cases, facts)
    excluded = []
    for case in select(cases, np.flatnonzero(~usable_cases)):
        problems = (image_problem(image, facts) for image in case.images)
        labels = filter(None, map(case.labels.get, dimensions))
        unacceptable = any(isinstance(of, PairLabel) and of.unacceptable for of in labels)
        unlabelled = UNACCEPTABLE if unacceptable else f"no label for {', '.join(dimensions)}"
        reason = next(filter(None, problems), unlabelled)
        excluded.append(Excluded(case.case_id, reason))
    return select(cases, np.flatnonzero(usable_cases)), excluded


def check_excluded(excluded: Sequence[Excluded], remaining: int, max_share: float) -> None:
    """Fails when too large a share of the training cases had to be set aside, else says how many.

    Cases of which no answer is acceptable are labelled as they should be, and do not count.

    Args:
        excluded: the cases set aside.
        remaining: how many cases are left.
        max_share: the largest accepted share of those set aside.

    Raises:
        DataError: the share is above `max_share`.
    """
    if not excluded:
        return
    total = len(excluded) + remaining
    share = sum(aside.reason != UNACCEPTABLE for aside in excluded) / total
    lines = alike_together([f"case {aside.case_id!r}: {aside.reason}" for aside in excluded])
    text = f"{len(excluded)} of {total} training cases ({len(excluded) / total:.1%}) cannot be used"
    if share > max_share:
        allowed = f"above max_excluded_share {max_share:.1%}"
        advice = "Repair them, or allow more with --max_excluded_share."
        raise DataError(report(f"{text}, {allowed}. {advice}", lines))
    logger.warning("%s", report(f"{text}; set aside:", lines, limit=5))
