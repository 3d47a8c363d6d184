"""What is worth knowing of a set of cases before it is trained on or measured with."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from math import prod
from typing import Any

from medrm.data import lint as stored
from medrm.data.case_set import CaseSet
from medrm.data.contamination import LeakReport, find_leaks, same_pictures
from medrm.data.images import ImageFacts, image_problem
from medrm.data.labels import Agreement
from medrm.data.medical.converted_set import identity_findings
from medrm.data.store.case_records import plain_text
from medrm.errors import ConfigError, nearest
from medrm.evaluation.benchmark import baselines
from medrm.evaluation.records.jsonl import grouped
from medrm.evaluation.vote_audit import FAST_SECONDS, MOST_FAST, fast_findings, vote_measures
from medrm.schema import Case, PairLabel
from medrm.statistics.intervals import mean, small_cell_interval
from medrm.statistics.significance import minimum_detectable

LEAST_CASES = 30
"""Shares over fewer cases are shown, but are no finding."""

EVEN = (0.4, 0.6)
"""Where the share of labels A should lie."""

EVEN_IN_ORGAN = (0.35, 0.65)
"""The same in an organ: of 13 organs and 6 dimensions some are uneven by chance. With 30 fair
labels in each of the 78 cells one such finding is expected in 39 sets, with 50 labels in 540."""

LENGTH = (0.25, 0.75)
"""Where the share of labels for the longer answer should lie."""

MOST_TIES = 0.5
MOST_SPLIT = 0.25
"""Of the labels: without a majority."""

MOST_NEITHER = 0.25
"""Of the labels: that no answer is acceptable."""

LEAST_ALPHA = 0.2
"""Krippendorff's alpha; below it agreement is slight (Landis and Koch 1977)."""

DISCORDANCE = 0.3
"""Share of cases whose score changes, for the gain that the set can show."""

FAINTEST = 3
"""Greys of an image in which a reader sees nothing."""

PLAIN_MODES = ("1", "L", "RGB")
"""Stored modes that every reader takes for the same picture."""

SHOWN_RULES = {
    "always_a": "always A",
    "always_b": "always B",
    "majority": "majority",
    "longer": "longer",
}
"""Of the rules that need no model, those that say something of a set, as tables name them."""

_GROUPS = ("organ", "department", "modality")

KINDS = {
    **stored.KINDS,
    "missing_dimensions": "cases without a label on a dimension that others have, or no label",
    "duplicates": "cases with the same question, answers and images",
    "copies": "one picture under several names, or in clusters that nothing else connects",
    "images": "missing or unreadable images",
    "image_modes": "images of 16 bits, with a palette, transparent or CMYK, which readers that "
    "do not convert them see otherwise",
    "identity": "medical images that may show who somebody is: burned-in annotation, or pictures "
    "that often hold some; secondary capture; recognisable features",
    "nearly_constant": f"images of at most {FAINTEST} of 256 greys, the outermost 0.1% left out",
    "empty": "empty questions or answers",
    "identical": "cases whose answers are the same",
    "balance": f"A clearly outside {EVEN[0]:.0%} to {EVEN[1]:.0%} of the A/B labels of the set, "
    f"{EVEN_IN_ORGAN[0]:.0%} to {EVEN_IN_ORGAN[1]:.0%} of an organ (the 95% interval lies outside; "
    f"{LEAST_CASES} labels or more)",
    "length": f"the longer answer clearly outside {LENGTH[0]:.0%} to {LENGTH[1]:.0%} of the labels",
    "ties": f"more than {MOST_TIES:.0%} ties",
    "no_majority": f"more than {MOST_SPLIT:.0%} of the labels without a majority",
    "neither": f"more than {MOST_NEITHER:.0%} of the labels that no answer is acceptable",
    "fast_votes": f"a reader with more than {MOST_FAST:.0%} of the votes in less than "
    f"{FAST_SECONDS:g} s",
    "agreement": f"Krippendorff's alpha below {LEAST_ALPHA}",
    "leaks": "what --train_data shares with the set",
}
"""The kinds of findings, and when there is one."""

Audit = dict[str, Any]


def check_kinds(kinds: Sequence[str], with_training: bool) -> None:
    """Checks the kinds of findings that are to fail.

    Raises:
        ConfigError: unknown kinds, or leaks without training data.
    """
    unknown = [name for name in kinds if name not in KINDS]
    if unknown:
        raise ConfigError(
            f"--fail_on {' '.join(unknown)}: no kind of finding; accepted are {', '.join(KINDS)}."
            f"{nearest(unknown[0], KINDS)}"
        )
    if "leaks" in kinds and not with_training:
        raise ConfigError("--fail_on leaks has nothing to compare with; give --train_data too.")


def audit(
    checked: CaseSet,
    facts: Mapping[str, ImageFacts],
    file_findings: stored.Findings | None = None,
    train: CaseSet | None = None,
) -> Audit:
    """Returns the audit of a set as JSON values; `findings` maps each kind to its sentences.

    Args:
        checked: what is audited.
        facts: of the images of both sets (`images.examine`).
        file_findings: what its files hold (`stored.stored_findings`).
        train: training cases that should share nothing with it.
    """
    cases, clusters = checked.cases, Counter(map(_cluster, checked.cases))
    leaks: LeakReport | None = None
    if train is not None:
        leaks = find_leaks(train.cases, cases, facts, checked.synthetic and train.synthetic)
    labels = {
        name: _labels(cases, name, checked.agreement.get(name)) for name in checked.dimensions
    }
    organs = _organs(cases, checked.dimensions)
    votes = vote_measures(cases)
    findings = {
        **{name: (file_findings or {}).get(name, []) for name in stored.KINDS},
        "missing_dimensions": _missing(cases, labels),
        "duplicates": _duplicates(cases),
        "copies": _copies(checked, facts),
        "images": [],
        **_image_findings(checked, facts),
        **_case_findings(cases, facts),
        "balance": _unbalanced(labels, organs),
        "length": _lengths(labels),
        "ties": _too_many(labels, "tie", MOST_TIES, "ties"),
        "no_majority": _too_many(labels, "no_majority", MOST_SPLIT, "without a majority"),
        "neither": _too_many(labels, "neither", MOST_NEITHER, "that no answer is acceptable"),
        "fast_votes": fast_findings(votes),
        "agreement": _slight(labels),
        "leaks": list(leaks.fatal) if leaks else [],
    }
    return {
        "name": checked.name,
        "digest": checked.digest,
        "cases": len(cases),
        "clusters": len(clusters),
        "largest_cluster": max(clusters.values()),
        "excluded_rows": len(checked.excluded),
        "text_only": sum(not case.images for case in cases),
        "images": {**_images(_facts(cases, facts)), "converted": dict(checked.converted)},
        "labels": labels,
        "votes": votes,
        "organs": organs,
        "groups": {
            group: dict(Counter(case.groups[group] for case in cases if group in case.groups))
            for group in _GROUPS
        },
        "leaks": asdict(leaks) if leaks else None,
        "findings": findings,
    }


def _images(distinct: Mapping[str, ImageFacts]) -> dict[str, Any]:
    """Returns how many images there are, of which modes and sizes."""
    readable = [fact for fact in distinct.values() if fact.problem is None]
    sizes = sorted(((fact.width, fact.height) for fact in readable), key=prod)
    return {
        "distinct": len(distinct),
        "unreadable": len(distinct) - len(readable),
        "modes": dict(Counter(fact.mode for fact in readable)),
        "smallest": sizes[0] if sizes else None,
        "largest": sizes[-1] if sizes else None,
    }


def _cluster(case: Case) -> str:
    return case.cluster or case.case_id


def _facts(cases: Iterable[Case], facts: Mapping[str, ImageFacts]) -> dict[str, ImageFacts]:
    """Returns the facts of these cases' images."""
    return {ref.digest: facts[ref.digest] for c in cases for ref in c.images if ref.digest}


def _labels(cases: Sequence[Case], dimension: str, agreement: Agreement | None) -> dict[str, Any]:
    """Returns how the labels of a dimension are spread, and what rules make of them.

    The rules' shares have intervals. `detectable` is the least gain that a paired test finds with
    power 80 %, where `DISCORDANCE` of the cases change: `independent` if the cases of a cluster
    have nothing in common, `clustered` if they change together (the design effect is then the mean
    cluster size, weighted by size; Kish 1965).
    """
    labelled = [case for case in cases if dimension in case.labels]
    choices = [
        (label.choice, case)
        for case in labelled
        if isinstance(label := case.labels[dimension], PairLabel) and not label.unacceptable
    ]
    pair_labels = sum(isinstance(case.labels[dimension], PairLabel) for case in labelled)
    counts = Counter(choice for choice, _ in choices)
    pairs = [(float(choice == 0), case) for choice, case in choices if choice in (0, 1)]
    differences = [len(case.answers[0]) - len(case.answers[1]) for _, case in pairs]
    longer = [
        (float(bool(first) == (difference > 0)), case)
        for (first, case), difference in zip(pairs, differences, strict=True)
        if difference
    ]
    sizes = Counter(_cluster(case) for _, case in pairs).values()
    effect = sum(size**2 for size in sizes) / max(len(pairs), 1)
    effects = {"independent": 1.0, "clustered": effect}
    table = baselines(labelled, [dimension])
    return {
        "cases": len(labelled),
        "n": pair_labels,
        "A": counts[0],
        "tie": counts["tie"],
        "B": counts[1],
        "no_majority": counts[None],
        "neither": pair_labels - counts.total(),
        "votes": sum(case.labels[dimension].votes for case in labelled),
        "agreement": None if agreement is None else asdict(agreement),
        "rules": {rule: table[rule][dimension] for rule in SHOWN_RULES},
        "a_ci95": _interval(pairs),
        "unequal_lengths": len(longer),
        "longer_share": mean(is_longer for is_longer, _ in longer),
        "longer_ci95": _interval(longer),
        "detectable": {
            name: minimum_detectable(len(pairs), DISCORDANCE, value)
            for name, value in effects.items()
        }
        if pairs
        else None,
    }


def _interval(scored: Sequence[tuple[float, Case]]) -> Sequence[float] | None:
    if not scored:
        return None
    values, cases = zip(*scored, strict=True)
    return small_cell_interval(values, [_cluster(case) for case in cases]).bounds


def _organs(cases: Sequence[Case], dimensions: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Returns the labels of each organ."""
    stated = (case for case in cases if "organ" in case.groups)
    members = grouped(stated, lambda case: case.groups["organ"])
    return {
        organ: {
            "cases": len(of_organ),
            "labels": {name: _labels(of_organ, name, None) for name in dimensions},
        }
        for organ, of_organ in sorted(members.items())
    }


def _outside(bounds: Sequence[float] | None, band: tuple[float, float]) -> bool:
    return bounds is not None and (bounds[0] > band[1] or bounds[1] < band[0])


def _unbalanced(labels: Mapping[str, Any], organs: Mapping[str, Any]) -> list[str]:
    cells = [(name, spread, EVEN) for name, spread in labels.items()]
    for organ, members in organs.items() if len(organs) > 1 else ():
        of_organ = members["labels"].items()
        cells += [(f"{organ}, {name}", spread, EVEN_IN_ORGAN) for name, spread in of_organ]
    return [
        f"{where}: A in {spread['A']} of {spread['A'] + spread['B']} A/B labels"
        for where, spread, band in cells
        if spread["A"] + spread["B"] >= LEAST_CASES and _outside(spread["a_ci95"], band)
    ]


def _lengths(labels: Mapping[str, Any]) -> list[str]:
    return [
        f"{name}: the longer answer in {row['longer_share']:.1%} of {row['unequal_lengths']} labels"
        for name, row in labels.items()
        if row["unequal_lengths"] >= LEAST_CASES and _outside(row["longer_ci95"], LENGTH)
    ]


def _too_many(labels: Mapping[str, Any], key: str, limit: float, description: str) -> list[str]:
    return [
        f"{name}: {row[key]} of {row['n']} labels {description}"
        for name, row in labels.items()
        if row["n"] >= LEAST_CASES and row[key] > limit * row["n"]
    ]


def _slight(labels: Mapping[str, Any]) -> list[str]:
    return [
        f"{name}: alpha {alpha:.2f} over {agreement['units']} pairs"
        for name, row in labels.items()
        if (agreement := row["agreement"]) and agreement["units"] >= LEAST_CASES
        if (alpha := agreement["alpha"]) is not None and alpha < LEAST_ALPHA
    ]


def _missing(cases: Sequence[Case], labels: Mapping[str, Any]) -> list[str]:
    if not labels:
        return ["no case has a label on any dimension"]
    return [
        f"{name}: {len(cases) - row['cases']} of {len(cases)} cases have no label"
        for name, row in labels.items()
        if row["cases"] < len(cases)
    ]


def _duplicates(cases: Sequence[Case]) -> list[str]:
    same: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for case in cases:
        images = tuple(sorted(ref.digest or ref.name for ref in case.images))
        answers = tuple(sorted(map(plain_text, case.answers)))
        same[plain_text(case.asked), answers, images].append(case.case_id)
    return [f"the same case: {', '.join(map(repr, ids))}" for ids in same.values() if len(ids) > 1]


def _copies(checked: CaseSet, facts: Mapping[str, ImageFacts]) -> list[str]:
    """Returns pictures of several names, and pairs of images that clusters keep apart."""
    names: dict[str, set[str]] = defaultdict(set)
    clusters: dict[str, set[str]] = defaultdict(set)
    for case in checked.cases:
        for ref in case.images:
            if ref.digest:
                names[ref.digest].add(ref.name)
                clusters[ref.digest].add(_cluster(case))
    findings = [
        f"the same bytes under {len(n)} names: {', '.join(sorted(n))}"
        for n in names.values()
        if len(n) > 1
    ]
    pairs: dict[frozenset[str], str] = {}
    for match in same_pictures(checked.cases, checked.cases, facts, checked.synthetic):
        original, copy = match.original.digest, match.copy.digest
        if not clusters[original] & clusters[copy]:
            both = f"{match.original.name} and {match.copy.name}, in different clusters"
            pairs.setdefault(frozenset((original, copy)), f"{match.how}: {both}")
    return findings + list(pairs.values())


def _case_findings(cases: Sequence[Case], facts: Mapping[str, ImageFacts]) -> dict[str, list[str]]:
    """Returns what is wrong with the images and the texts of single cases."""
    findings: dict[str, list[str]] = {"images": [], "empty": [], "identical": []}
    for case in cases:
        problems = filter(None, (image_problem(ref, facts) for ref in case.images))
        findings["images"] += [f"case {case.case_id!r}: {problem}" for problem in problems]
        findings["empty"] += [
            f"case {case.case_id!r}: empty {f'answer {number}' if number else 'question'}"
            for number, text in enumerate((case.question, *case.answers))
            if not text.strip()
        ]
        if repeated := len(case.answers) - len(set(map(plain_text, case.answers))):
            same = f"case {case.case_id!r}: {repeated + 1} answers are the same"
            findings["identical"].append(same)
    return findings


def _image_findings(checked: CaseSet, facts: Mapping[str, ImageFacts]) -> dict[str, list[str]]:
    return {
        "image_modes": _odd_modes(checked.cases, facts),
        "identity": identity_findings(checked.converted),
        "nearly_constant": _nearly_constant(checked.cases, facts),
    }


def _odd_modes(cases: Sequence[Case], facts: Mapping[str, ImageFacts]) -> list[str]:
    members: dict[str, list[str]] = defaultdict(list)
    name_of = _names(cases)
    for digest, fact in _facts(cases, facts).items():
        if fact.problem is None and fact.mode not in PLAIN_MODES:
            members[fact.mode].append(name_of[digest])
    return [
        f"mode {mode}: {len(names)} image{'s' if len(names) > 1 else ''}, such as {names[0]}"
        for mode, names in members.items()
    ]


def _names(cases: Sequence[Case]) -> dict[str, str]:
    """Returns a name of each image, by its digest."""
    return {ref.digest: ref.name for case in cases for ref in case.images}


def _nearly_constant(cases: Sequence[Case], facts: Mapping[str, ImageFacts]) -> list[str]:
    faint = {
        digest: fact.contrast + 1
        for digest, fact in _facts(cases, facts).items()
        if fact.problem is None and fact.contrast < FAINTEST
    }
    names = _names(cases)
    return [f"{names[digest]}: {greys} of 256 greys" for digest, greys in faint.items()]
