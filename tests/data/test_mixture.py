"""Mixtures of training sets: how they are named, what is drawn of them, and their joint index."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from files import picture, png, vote, write_lines

from medrm.data.case_set import CaseSet, read_set
from medrm.data.contamination import find_leaks, same_pictures
from medrm.data.images import examine
from medrm.data.mixture import (
    Drawing,
    check_is_one_set,
    in_shares,
    named_sources,
    read_training_set,
    set_counts,
)
from medrm.data.sources import description_names
from medrm.data.splits import parts_of, split_by_cluster
from medrm.data.store.indexed_cases import cluster_column
from medrm.errors import ConfigError, DataError, MedrmError


def write_set(path: Path, rows: list[dict[str, Any]], images: int = 0) -> str:
    """Writes a votes file, with images of their own beside it."""
    write_lines(path, rows)
    (path.parent / "images").mkdir(exist_ok=True)
    for number in range(images):
        (path.parent / "images" / f"{number}.png").write_bytes(png(picture(number)))
    return str(path)


def text(number: int, **changes: Any) -> dict[str, Any]:
    question = f"Question {number}?"
    return vote(f"c{number}", image=..., images=[], question=question, **changes)


@pytest.fixture
def sets(tmp_path: Path) -> tuple[str, str]:
    """60 text-only cases, and 50 of another set of which ten stand in the first one as well."""
    first = write_set(tmp_path / "a" / "own.jsonl", [text(n) for n in range(60)])
    rows = [text(n, votes={"overall": "B"}) for n in range(50, 100)]
    return first, write_set(tmp_path / "b" / "public.jsonl", rows)


def test_shares_are_exact_and_what_is_drawn_follows_from_the_seed(sets: tuple[str, str]) -> None:
    first, second = sets
    mixture = read_training_set(f"{first}=0.7,{second}=0.3")
    own, public = mixture.mixed
    # 40 cases are the second set's alone, of 60 of the first: 60 / 0.7 = 85.7 cases in all.
    assert (own.drawn, public.drawn) == (59, 26)
    assert (own.repeated, public.repeated, own.capped) == (0, 10, 0)
    assert (mixture.name, mixture.dimensions) == ("own+public", ("accuracy", "overall"))
    ids = [case.case_id for case in mixture.cases]
    assert len(set(ids)) == 85
    assert len({"own/c55", "own/c57", "own/c59"} & set(ids)) > 1
    assert not {"public/c50", "public/c59"} & set(ids)
    assert Counter(case.groups["set"] for case in mixture.cases) == {"own": 59, "public": 26}
    assert read_training_set(f"{first}=0.7,{second}=0.3").digest == mixture.digest
    other = read_training_set(f"{first}=0.7,{second}=0.3", drawing=Drawing(seed=1))
    assert (other.mixed[1].drawn, other.digest == mixture.digest) == (26, False)
    # What is drawn does not depend on the order of the rows.
    lines = Path(second).read_text(encoding="utf-8").splitlines(keepends=True)
    Path(second).write_text("".join(reversed(lines)), encoding="utf-8")
    again = read_training_set(f"{first}=0.7,{second}=0.3")
    assert {case.case_id for case in again.cases} == set(ids)
    # In every part of a split the shares can be had again.
    parts = parts_of(mixture.cases, split_by_cluster(mixture.cases, (0.6, 0.4), 0), 2)
    for part in parts:
        of_own, of_public = set_counts(in_shares(part, mixture.mixed, 0), mixture.mixed)
        assert of_public > 5
        assert abs(of_own - (of_own + of_public) * 0.7) <= 1
    whole = read_training_set(f"{first},{second}")
    assert [part.drawn for part in whole.mixed] == [60, 40]
    assert in_shares(whole.cases, whole.mixed, 0) is whole.cases


def test_cases_are_as_in_their_sets(tmp_path: Path) -> None:
    """Labels, groups, contexts, images in files; a third set in the place of one that is gone."""
    several = {"answer_a": ..., "answer_b": ..., "answers": ["x", "y", "z"]}
    rows = [
        vote("c1", image="images/0.png", organ="brain", patient="p"),
        vote("c2", image="images/1.png", **several, votes={"overall": [[0, 2], 1]}),
        vote("c3", image="images/none.png"),
    ]
    first = write_set(tmp_path / "a" / "votes.jsonl", rows, images=2)
    rows = [vote("c1", image="images/2.png", votes={"accuracy": "tie"})]
    second = write_set(tmp_path / "b" / "votes.jsonl", rows, images=3)
    mixture = read_training_set(f"{first},{second}")
    assert [part.name for part in mixture.mixed] == ["votes", "votes#2"]
    stated = [*read_set(first).cases, *read_set(second).cases]
    for case, alone in zip(mixture.cases, stated, strict=True):
        assert case.case_id.partition("/")[2] == alone.case_id
        assert (case.labels, case.answers, case.question) == (
            alone.labels, alone.answers, alone.question
        )  # fmt: skip
        assert {**case.groups, "set": ""} == {**alone.groups, "set": ""}
        assert [ref.digest for ref in case.images] == [ref.digest for ref in alone.images]
        assert [ref.problem for ref in case.images] == [ref.problem for ref in alone.images]
        assert all(ref.problem or ref.read() == there.read() for ref, there in zip(
            case.images, alone.images, strict=True
        ))  # fmt: skip
    (tmp_path / "a" / "images" / "0.png").write_bytes(png(picture(7)))
    changed = read_training_set(f"{first},{second}")
    assert changed.cases[0].images[0].digest != mixture.cases[0].images[0].digest


def test_what_sets_share_is_one_cluster(tmp_path: Path) -> None:
    """A picture, its copy in another form, a patient; ids of prompts mean nothing elsewhere."""
    rows = [
        vote("c1", image="images/0.png", question="1?"),
        vote("c2", image="images/1.png", question="2?", patient="p"),
        vote("c3", image="images/2.png", question="3?"),
    ]
    first = write_set(tmp_path / "a" / "one.jsonl", rows, images=3)
    rows = [
        vote("d1", image="images/0.png", question="4?"),
        vote("d2", image="images/9.png", question="5?", patient="p"),
        vote("d3", image="images/8.jpg", question="6?"),
    ]
    second = write_set(tmp_path / "b" / "two.jsonl", rows, images=1)
    images = tmp_path / "b" / "images"
    (images / "9.png").write_bytes(png(picture(9)))
    (images / "8.jpg").write_bytes(png(picture(2), format="JPEG", quality=95))
    mixture = read_training_set(f"{first},{second}")
    clusters = cluster_column(mixture.cases)
    assert (clusters[0], clusters[1]) == (clusters[3], clusters[4])
    assert len(set(clusters.tolist())) == 4
    facts = examine(mixture.cases)
    copies = same_pictures(mixture.cases, mixture.cases, facts, synthetic=False)
    pairs = [(same.original.digest, same.copy.digest) for same in copies]
    assert len(pairs) == 1
    for seed in range(8):
        parts = split_by_cluster(mixture.cases, (0.5, 0.5), seed, pairs)
        assert (parts[:3] == parts[3:]).all()
    (leak,) = find_leaks(mixture.cases[3:4], read_set(first).cases, facts, False).fatal
    assert "training case 'two/d1'" in leak


def test_caps_hold_over_all_sets(tmp_path: Path) -> None:
    def rows(name: str, count: int) -> list[dict[str, Any]]:
        return [
            vote(f"{name}{n}", image=f"images/{n % 2}.png", answer_a=f"{name} {n}",
                 question=f"Question {n % 4}?")
            for n in range(count)
        ]  # fmt: skip

    first = write_set(tmp_path / "a" / "one.jsonl", rows("x", 12), images=2)
    second = write_set(tmp_path / "b" / "two.jsonl", rows("y", 12), images=2)
    prompts = read_training_set(f"{first},{second}", drawing=Drawing(per_prompt=2))
    asked = Counter((case.question, case.images[0].digest) for case in prompts.cases)
    assert (len(asked), {*asked.values()}) == (4, {2})
    assert sum(part.capped for part in prompts.mixed) == 24 - 8
    images = read_training_set(f"{first},{second}", drawing=Drawing(per_image=3))
    shown = Counter(case.images[0].digest for case in images.cases)
    assert {*shown.values()} == {3}
    # Of one set alone, whose ids stay.
    alone = read_training_set(first, drawing=Drawing(per_prompt=1))
    assert len(alone.cases) == 4
    assert {case.case_id for case in alone.cases} < {f"x{n}" for n in range(12)}
    assert (alone.name, "set" in alone.cases[0].groups) == ("one", False)
    assert read_training_set(first).mixed == ()


@pytest.mark.parametrize(
    ("written", "named"),
    [
        ("phantom", [("phantom", None)]),
        ("a=0.25, b=0.75", [("a", 0.25), ("b", 0.75)]),
        ('"x,y=1"=0.5,"say ""no"""=0.5', [("x,y=1", 0.5), ('say "no"', 0.5)]),
        ("org/name,b", [("org/name", None), ("b", None)]),
        ("k=v=0.4,c=6e-1", [("k=v", 0.4), ("c", 0.6)]),
        ("lr=3/it.jsonl", [("lr=3/it.jsonl", None)]),
        ("lr=3/it.jsonl=0.5,b=0.5", [("lr=3/it.jsonl", 0.5), ("b", 0.5)]),
        ("lr=3/it.jsonl,b", [("lr=3/it.jsonl", None), ("b", None)]),
        ("one,two=0.5.jsonl", [("one,two=0.5.jsonl", None)]),
        (",".join(f"source_{n}" for n in range(900)), [(f"source_{n}", None) for n in range(900)]),
    ],
)
def test_how_sources_are_written(
    written: str, named: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path / "lr=3" / "it.jsonl", [text(1)])
    write_set(tmp_path / "one,two=0.5.jsonl", [text(1)])
    assert named_sources(written) == named


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("a=0.7,b=0.2", "the shares sum to 0.9"),
        ("a=0.7,b", "some sources have a share and others none"),
        ("a=x,b=0", "'x' is no positive share"),
        ("a=x,b=0", "'0' is no positive share"),
        ("a=nan,b=1", "'nan' is no positive share"),
        ("a=0.5,./a=0.5", "'a' is named twice"),
        ("a=0.5,,b=0.5", "double quotes"),
        ('"a=0.5,b=0.5', "double quotes"),
        ("=0.5,b=0.5", "no source is named"),
        ('a"b"=1', "no source is named"),
    ],
)
def test_what_is_no_mixture(written: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        named_sources(written)
    assert '"a,b.jsonl"=0.7' in str(caught.value)


def test_a_set_of_data_is_a_benchmark_and_a_list_of_sets_is_none() -> None:
    for benchmark in (*description_names(), "med_rewardbench", "own/set"):
        check_is_one_set(benchmark)
    for benchmark in ("rlaif_v=1", "rlaif_v,helpsteer3", "med_rewardbench=0.5,rlaif_v=0.5"):
        with pytest.raises(ConfigError, match="Evaluate on each set by itself: --benchmark"):
            check_is_one_set(benchmark)


def test_sets_of_which_nothing_is_left(sets: tuple[str, str], tmp_path: Path) -> None:
    first, second = sets
    repeated = write_set(tmp_path / "c" / "copy.jsonl", [text(1), text(2)])
    for written, problem in {
        f"{first},{repeated}": "Of copy no case is left",
        f"{first}=0.999,{second}=0.001": "leave no case of public .cases there are: own 60",
        f"{first},{tmp_path / 'none.jsonl'}": "is no file",
        "": "'' is no file",
        "x" * 300: r"x\.\.\.x+' is no file",
        "~/set.jsonl": "A home folder is written out",
    }.items():
        with pytest.raises(MedrmError, match=problem):
            read_training_set(written)


def test_a_mixture_is_drawn_without_its_cases(
    sets: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The indexes of the sets are compared by their columns; the second time nothing is decoded."""
    written = f"{sets[0]}=0.5,{sets[1]}=0.5"
    first: CaseSet = read_training_set(written)

    def refuse(*_: Any) -> None:
        raise AssertionError("a case was decoded")

    monkeypatch.setattr("medrm.data.store.indexed_cases.decode_case", refuse)
    again = read_training_set(written)
    assert again.digest == first.digest
    assert (cluster_column(again.cases) == cluster_column(first.cases)).all()
    assert np.array_equal(set_counts(again.cases, again.mixed), [40, 40])
    with pytest.raises((AssertionError, DataError)):
        again.cases[0]
