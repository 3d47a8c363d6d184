"""Mixtures of random sets against the rules in plain Python: cases, caps, clusters, leaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from files import picture, png, vote, write_lines
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from medrm.data.case_set import CaseSet, read_set
from medrm.data.contamination import find_leaks
from medrm.data.images import examine
from medrm.data.mixture import Drawing, read_training_set
from medrm.data.store.indexed_cases import cluster_column
from medrm.errors import DataError

Line = dict[str, Any]
Drawn = list[tuple[int, str]]
"""The number of a set and the id of a case in it."""

IMAGES = [f"images/{number}.png" for number in range(5)]
LINES = st.builds(
    lambda question, answers, images, patient: {
        "question": f"Q{question}?",
        "answers": answers,
        "images": images,
        "patient": patient,
    },
    st.integers(0, 3),
    st.permutations(["a", "b", "c"]).map(lambda answers: answers[:2]),
    st.lists(st.sampled_from(IMAGES), max_size=2),
    st.sampled_from([None, "p", "q", "r"]),
)
SETS = st.lists(st.lists(LINES, min_size=1, max_size=14), min_size=2, max_size=3)
CAPS = st.sampled_from([None, None, 1, 2, 3])
WEIGHTS = st.none() | st.lists(st.integers(1, 9), min_size=3, max_size=3)
NUMBERS = count()


def prompt(line: Line) -> Hashable:
    return line["question"], tuple(sorted(line["images"]))


def content(line: Line) -> Hashable:
    return prompt(line), tuple(sorted(line["answers"]))


def unions(keys: Sequence[Iterable[Hashable]]) -> list[Hashable]:
    """The name of the cluster of each: those with a key in common have one."""
    parents: dict[Hashable, Hashable] = {}

    def root(key: Hashable) -> Hashable:
        while parents.setdefault(key, key) != key:
            key = parents[key]
        return key

    for number, of_case in enumerate(keys):
        for key in of_case:
            parents[root(("case", number))] = root(key)
    return [root(("case", number)) for number in range(len(keys))]


def cluster_keys(line: Line) -> list[Hashable]:
    keys = [("image", name) for name in line["images"]] or [("question", line["question"])]
    return [*keys, *([("patient", line["patient"])] if line["patient"] else [])]


def write_set(folder: Path, lines: list[Line]) -> None:
    (folder / "images").mkdir(parents=True)
    for number, name in enumerate(IMAGES):
        (folder / name).write_bytes(png(picture(number)))
    rows = []
    for number, line in enumerate(lines):
        row = vote(f"c{number}", image=..., images=line["images"], question=line["question"])
        row |= dict(zip(("answer_a", "answer_b"), line["answers"], strict=True))
        rows.append(row | ({"patient": line["patient"]} if line["patient"] else {}))
    write_lines(folder / "votes.jsonl", rows)


def without_repetitions(sets: list[list[Line]]) -> list[dict[str, Line]]:
    """Of each set the cases that no earlier one has, by their id."""
    earlier: set[Hashable] = set()
    distinct = []
    for lines in sets:
        named = {f"c{number}": line for number, line in enumerate(lines)}
        distinct.append({key: line for key, line in named.items() if content(line) not in earlier})
        earlier |= set(map(content, lines))
    return distinct


@pytest.mark.slow
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(sets=SETS, per_prompt=CAPS, per_image=CAPS, weights=WEIGHTS)
def test_what_is_drawn_of_random_sets(
    tmp_path: Path,
    sets: list[list[Line]],
    per_prompt: int | None,
    per_image: int | None,
    weights: list[int] | None,
) -> None:
    root = tmp_path / f"{next(NUMBERS)}"
    folders = [root / f"set{number}" for number in range(len(sets))]
    for folder, lines in zip(folders, sets, strict=True):
        write_set(folder, lines)
    used = (weights or [])[: len(sets)]
    shares = [weight / sum(used) for weight in used]
    stated = [f"={share!r}" for share in shares] or [""] * len(sets)
    source = ",".join(f"{folder}{share}" for folder, share in zip(folders, stated, strict=True))
    distinct, drawing = without_repetitions(sets), Drawing(0, per_prompt, per_image)
    if not all(distinct):
        with pytest.raises(DataError, match="no case"):
            read_training_set(source, drawing)
        return
    try:
        mixture = read_training_set(source, drawing)
    except DataError:  # caps or shares leave nothing of a set
        assert shares or per_prompt or per_image
        return
    ids = (case.case_id.partition("/") for case in mixture.cases)
    drawn = [(int(name.removeprefix("set")), case_id) for name, _, case_id in ids]
    taken = [distinct[number][case_id] for number, case_id in drawn]  # of those alone
    parts = zip(distinct, mixture.mixed, strict=True)
    left = [len(lines) - part.capped for lines, part in parts]
    counts = [sum(number == own for number, _ in drawn) for own in range(len(sets))]
    check_caps(distinct, drawn, taken, drawing, complete=not shares)
    for number, share in enumerate(shares):
        assert abs(counts[number] - len(drawn) * share) < 1.001
    if shares:  # of one case more there would not be enough
        more = zip(shares, left, strict=True)
        assert any((len(drawn) + 1) * share > number + 1e-9 for share, number in more)
    else:
        assert counts == left
    check_clusters(sets, drawn, mixture)
    check_leaks(sets, taken, mixture, folders)


def check_caps(
    distinct: list[dict[str, Line]],
    drawn: Drawn,
    taken: list[Line],
    drawing: Drawing,
    *,
    complete: bool,
) -> None:
    """Caps hold, and where no shares are cut, what is left out would go beyond one."""
    prompts = Counter(map(prompt, taken))
    images = Counter(name for line in taken for name in set(line["images"]))
    assert max(prompts.values()) <= (drawing.per_prompt or len(taken))
    assert max(images.values(), default=0) <= (drawing.per_image or len(taken))
    for number, lines in enumerate(distinct) if complete else ():
        for case_id, line in lines.items():
            full = prompts[prompt(line)] == drawing.per_prompt
            full |= any(images[name] == drawing.per_image for name in line["images"])
            assert (number, case_id) in drawn or full


def check_clusters(sets: list[list[Line]], drawn: Drawn, mixture: CaseSet) -> None:
    """Clusters are those of each set, joined where sets share an image or a patient."""
    alone = [unions(list(map(cluster_keys, lines))) for lines in sets]
    indices = [(number, int(case_id[1:])) for number, case_id in drawn]
    keys = [[*cluster_keys(sets[n][index]), (n, alone[n][index])] for n, index in indices]
    pairs = set(zip(unions(keys), cluster_column(mixture.cases).tolist(), strict=True))
    assert len(pairs) == len({first for first, _ in pairs}) == len({second for _, second in pairs})


def check_leaks(
    sets: list[list[Line]], taken: list[Line], mixture: CaseSet, folders: list[Path]
) -> None:
    """Each set as the benchmark: it leaks where it shares an image, or a case without images."""
    for lines, folder in zip(sets, folders, strict=True):
        benchmark = read_set(str(folder)).cases
        shown = {name for line in lines for name in line["images"]}
        texts = {content(line) for line in lines if not line["images"]}
        shared = shown & {name for line in taken for name in line["images"]}
        facts = examine([*mixture.cases, *benchmark])
        leaks = find_leaks(mixture.cases, benchmark, facts, synthetic=True).fatal
        assert bool(leaks) == bool(shared or texts & set(map(content, taken)))
