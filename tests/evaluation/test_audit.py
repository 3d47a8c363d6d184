from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from medrm.cli import main
from medrm.data.case_set import CaseSet, dimensions_of
from medrm.data.images import bytes_image, examine
from medrm.data.labels import Agreement
from medrm.data.phantom.phantom_set import write_phantom
from medrm.evaluation.audit import KINDS, audit
from medrm.evaluation.tables.terminal import print_audit
from medrm.schema import Case, Choice, ImageRef, PairLabel, RankingLabel
from medrm.statistics.significance import minimum_detectable


def picture(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


def stored(image: Image.Image, name: str = "1.png", **options: Any) -> ImageRef:
    buffer = io.BytesIO()
    image.save(buffer, options.pop("format", "PNG"), **options)
    return bytes_image(name, partial(bytes, buffer.getvalue()))


def label(choice: Choice | None) -> PairLabel:
    shares = {0: (1.0, 0.0, 0.0), "tie": (0.0, 1.0, 0.0), 1: (0.0, 0.0, 1.0), None: (0.5, 0.0, 0.5)}
    return PairLabel(shares[choice], 2)


def case(number: int, choice: Choice | None = 0, *refs: ImageRef, **changes: Any) -> Case:
    given: dict[str, Any] = {
        "case_id": f"c{number}",
        "images": refs,
        "question": f"Question {number}?",
        "answers": (f"yes {number}", f"no. {number}") if number % 2 else (f"{number}.", "or not"),
        "labels": {"overall": label(choice)},
        "cluster": f"k{number}",
        "groups": {"organ": "brain"},
    }
    return Case(**given | changes)


def set_of(cases: list[Case], **known: Any) -> CaseSet:
    return CaseSet("set", "local", "digest", tuple(cases), (), dimensions_of(cases), **known)


def audited(cases: list[Case], train: list[Case] | None = None, **known: Any) -> dict[str, Any]:
    facts = examine([*cases, *(train or [])])
    return audit(set_of(cases, **known), facts, None, None if train is None else set_of(train))


def found(kind: str, cases: list[Case], *more: Any, **known: Any) -> list[str]:
    """The findings of one kind, and none of another."""
    findings = audited(cases, *more, **known)["findings"]
    assert set(findings) == set(KINDS)
    assert {name for name, sentences in findings.items() if sentences} <= {kind}
    return findings[kind]


EVEN = [case(number, number // 2 % 2) for number in range(80)]
"""Nothing to find: labels and lengths are even."""


def test_an_even_set_has_no_finding():
    assert not any(audited(EVEN)["findings"].values())


def test_the_same_case_twice():
    again = [
        case(90, question=" question  1? ", answers=EVEN[1].answers[::-1]),
        case(91, question="Question 1?"),
    ]
    assert found("duplicates", EVEN + again) == ["the same case: 'c1', 'c90'"]


def test_copies_of_a_picture_that_clusters_keep_apart():
    large = picture(1, (160, 150))
    own = case(90, 0, stored(large, "own.png"))
    near = stored(large, "near.jpg", format="JPEG", quality=90)
    (sentence,) = found("copies", [*EVEN, own, case(91, 1, near)])
    assert sentence.startswith("nearly the same pixels: ")
    assert {"own.png", "near.jpg"} <= set(sentence.replace(",", "").split())
    assert not found("copies", [*EVEN, own, case(91, 1, near, cluster="k90")])
    assert not found("copies", [*EVEN, own, case(91, 1, near)], synthetic=True)
    again = [own, case(91, 1, stored(large, "other.png"), cluster="k90")]
    assert found("copies", EVEN + again) == ["the same bytes under 2 names: other.png, own.png"]


def test_images_that_cannot_be_had():
    gone = ImageRef("gone.png", "", bytes, "there is no file 'gone.png'")
    bad = bytes_image("bad.png", partial(bytes, b"no image"))
    first, second = found("images", [*EVEN, case(90, 0, gone), case(91, 1, bad)])
    assert "'c90'" in first
    assert "there is no file" in first
    assert "'c91'" in second
    assert "cannot be decoded" in second


@pytest.mark.parametrize(
    ("mode", "image", "options"),
    [
        ("I;16", Image.fromarray(np.arange(12, dtype=np.uint16).reshape(3, 4)), {}),
        ("P", picture(1).convert("P"), {}),
        ("P transparent", picture(1).convert("P"), {"transparency": 0}),
        ("RGBA", picture(1).convert("RGBA"), {}),
        ("LA", picture(1).convert("LA"), {}),
        ("CMYK", picture(1).convert("CMYK"), {"format": "JPEG"}),
    ],
)
def test_modes_that_readers_see_differently(mode: str, image: Image.Image, options: Any):
    plain = [case(91, 1, stored(picture(2))), case(92, 1, stored(picture(3).convert("L")))]
    cases = [*EVEN, *plain, case(90, 0, stored(image, "odd", **options))]
    assert found("image_modes", cases) == [f"mode {mode}: 1 image, such as odd"]
    assert audited(cases)["images"]["modes"] == {"RGB": 1, "L": 1, mode: 1}


def test_empty_and_equal_texts():
    assert found("empty", [*EVEN, case(90, question=" "), case(91, answers=("a", "\n"))]) == [
        "case 'c90': empty question",
        "case 'c91': empty answer 2",
    ]
    assert found("identical", [*EVEN, case(90, answers=("Yes.", " yes."))]) == [
        "case 'c90': 2 answers are the same"
    ]


def test_missing_dimensions():
    more = case(90, labels={"overall": label(0), "accuracy": label(1)})
    assert found("missing_dimensions", [*EVEN, more]) == ["accuracy: 80 of 81 cases have no label"]
    bare = audited([case(0, labels={}), case(1, labels={})])
    assert bare["findings"]["missing_dimensions"] == ["no case has a label on any dimension"]


def test_uneven_labels_of_the_set_and_of_an_organ():
    uneven = [case(number, number % 4 == 0) for number in range(80)]
    result = audited(uneven)
    assert result["findings"]["balance"] == ["overall: A in 60 of 80 A/B labels"]
    rules = result["labels"]["overall"]["rules"]
    assert (rules["always_a"], rules["always_b"], rules["majority"]) == (0.75, 0.25, 0.75)
    foot = {"organ": "foot"}
    organs = [case(100 + number, number >= 4, groups=foot) for number in range(40)]
    far = [case(200 + number, number >= 36, groups={"organ": "eye"}) for number in range(40)]
    assert audited([*EVEN, *organs, *far])["findings"]["balance"] == [
        "eye, overall: A in 36 of 40 A/B labels",
        "foot, overall: A in 4 of 40 A/B labels",
    ]
    assert not audited(uneven[:20])["findings"]["balance"], "few labels show nothing"
    # The same labels in two clusters say little.
    clustered = [case(number, number % 4 == 0, cluster=f"{number % 2}") for number in range(80)]
    assert not audited(clustered)["findings"]["balance"]


def test_labels_for_the_longer_answer():
    longer = [
        case(n, n % 2, answers=("long answer", "short") if n % 2 == 0 else ("short", "long answer"))
        for n in range(80)
    ]
    assert found("length", longer) == ["overall: the longer answer in 100.0% of 80 labels"]
    shorter = [case(n, n % 2, answers=one.answers[::-1]) for n, one in enumerate(longer)]
    assert found("length", shorter) == ["overall: the longer answer in 0.0% of 80 labels"]


def test_ties_labels_without_a_majority_and_disagreement():
    ties = [case(100 + number, "tie") for number in range(81)]
    assert found("ties", EVEN + ties) == ["overall: 81 of 161 labels ties"]
    split = [case(100 + number, None) for number in range(27)]
    assert found("no_majority", EVEN + split) == ["overall: 27 of 107 labels without a majority"]
    low = {"overall": Agreement(0.11, 0.4, 80, 3)}
    assert found("agreement", EVEN, agreement=low) == ["overall: alpha 0.11 over 80 pairs"]
    assert not found("agreement", EVEN, agreement={"overall": Agreement(0.3, 0.6, 80, 3)})


def test_leaks_into_the_training_data():
    result = audited(EVEN, [case(500, question="Question 3?", answers=EVEN[3].answers)])
    (sentence,) = result["findings"]["leaks"]
    assert "'c3'" in sentence
    assert result["leaks"]["repeated_questions"] == 1
    image = stored(picture(1))
    assert found("leaks", [*EVEN, case(90, 0, image)], [case(500, 0, image)])
    assert not found("leaks", EVEN, [case(500)])


def test_the_gain_that_can_be_shown():
    cases = [case(n, n // 2 % 2, cluster=f"{n // 4}") for n in range(80)]
    assert audited(cases)["labels"]["overall"]["detectable"] == {
        "independent": minimum_detectable(80, 0.3),
        "clustered": minimum_detectable(80, 0.3, 4.0),
    }


def test_rankings_are_counted_and_leave_pairs_alone():
    ranked = case(90, answers=("a", "b", "a"), labels={"overall": RankingLabel((((0, 1), (2,)),))})
    result = audited([*EVEN, ranked])
    one = result["labels"]["overall"]
    assert (one["cases"], one["n"], one["A"] + one["B"]) == (81, 80, 80)
    assert result["findings"]["identical"] == ["case 'c90': 2 answers are the same"]


def test_the_tables_fit_into_eighty_columns():
    cases = [case(n, n // 2 % 2, groups={"organ": "gastrointestinal_tract"}) for n in range(80)]
    six = {name: label(0) for name in ("accuracy", "comprehensiveness", "responsiveness")}
    cases += [case(90, 0, stored(picture(1)), labels=six, question=" ", answers=("[bold]a", "b"))]
    buffer = io.StringIO()
    print_audit(audited(cases), Console(file=buffer, width=80))
    lines = buffer.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert "empty: 1" in lines
    assert "smallest organ: brain, 1 cases" in lines


@pytest.fixture
def votes(tmp_path: Path) -> Callable[..., Path]:
    def write(*rows: dict[str, Any]) -> Path:
        base = {"images": [], "question": "q", "answer_a": "a", "answer_b": "b", "annotator": "x"}
        lines = [json.dumps({**base, "case_id": f"c{n}", **row}) for n, row in enumerate(rows)]
        path = tmp_path / "votes.jsonl"
        path.write_text("\n".join(lines), encoding="utf-8")
        return path

    return write


def test_exit_status_and_file(votes: Callable[..., Path], tmp_path: Path, capsys: Any):
    rows = [{"votes": {"overall": "A"}, "answer_b": " "}, {"votes": {"overall": "tie"}}]
    path = str(votes(rows[0] | {"organ": "eye"}, rows[1]))
    output = tmp_path / "deep" / "audit.json"
    departments = tmp_path / "departments.json"
    departments.write_text('{"eye": "ophthalmology"}')
    words = ["--output", str(output), "--department_map", str(departments)]
    assert main(["data", "audit", path, *words]) == 0
    stored_audit = json.loads(output.read_text())
    assert stored_audit["groups"] == {
        "organ": {"eye": 1}, "department": {"ophthalmology": 1}, "modality": {}
    }  # fmt: skip
    assert stored_audit["labels"]["overall"]["tie"] == 1
    assert stored_audit["findings"]["empty"] == ["case 'c0': empty answer 2"]
    assert main(["data", "audit", path, "--fail_on", "ties", "empty"]) == 1
    assert main(["data", "audit", path, "--fail_on", "ties", "leaks", "--train_data", path]) == 1
    assert main(["data", "audit", path, "--fail_on", "ties", "images"]) == 0
    capsys.readouterr()
    assert main(["data", "audit", path, "--fail_on", "tis"]) == 2
    assert "Did you mean 'ties'?" in capsys.readouterr().err
    assert main(["data", "audit", path, "--fail_on", "leaks"]) == 2
    assert "give --train_data too" in capsys.readouterr().err


def test_what_the_reader_refuses_is_shown_first(
    votes: Callable[..., Path], tmp_path: Path, capsys: Any
):
    path = str(votes({"votes": {"overall": "a", "accuracy": "A"}}, {"votes": "B"}))
    output = tmp_path / "audit.json"
    assert main(["data", "audit", path, "--output", str(output)]) == 2
    shown = capsys.readouterr()
    assert "overall is 'a' in 1 case, such as 'c0'" in shown.out
    assert "has 2 problems" in shown.err
    refused = json.loads(output.read_text())
    assert "has 2 problems" in refused["refused"]
    assert refused["findings"]["labels"]
    assert main(["data", "audit", path, "--fail_on", "labels"]) == 1
    assert main(["data", "audit", path, "--fail_on", "duplicate_ids"]) == 2
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    capsys.readouterr()
    assert main(["data", "audit", str(empty)]) == 2
    assert "no findings" not in capsys.readouterr().out


@pytest.mark.parametrize("seed", [0, 5])
def test_of_phantom_only_what_its_construction_explains(seed: int, tmp_path: Path):
    """A more comprehensive answer says more; the released form leaves ties out."""
    write_phantom(tmp_path / "set", cases=150, seed=seed)
    output = tmp_path / "audit.json"
    explained = {str(tmp_path / "set"): {"length", "missing_dimensions"}}
    explained[str(tmp_path / "set" / "votes.jsonl")] = {"length"}
    for source, kinds in explained.items():
        others = sorted(set(KINDS) - kinds - {"leaks"})
        words = ["data", "audit", source, "--output", str(output), "--fail_on", *others]
        assert main(words) == 0
        result = json.loads(output.read_text())
        assert {kind for kind, sentences in result["findings"].items() if sentences} == kinds
        (length,) = result["findings"]["length"]
        assert length.startswith("comprehensiveness: ")
        assert sum(result["groups"]["organ"].values()) == result["cases"] == 150
        assert set(result["groups"]["modality"]) == {"CT", "MR"}
