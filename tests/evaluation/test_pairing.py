"""What a comparison says besides the headline, by hand: gate, cells, orders, notes, pictures."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mock_scorers import Judge, Rewards, Writer, make_benchmark, make_cases, oracle

from medrm.cli import main
from medrm.data.case_set import digest_of
from medrm.errors import ConfigError, DataError
from medrm.evaluation.compare import compare
from medrm.evaluation.evaluator import evaluate
from medrm.evaluation.folds import notes_of_folds
from medrm.evaluation.report import read_json, write_json
from medrm.schema import DIMENSIONS, Case
from medrm.statistics.significance import benjamini_hochberg, holm, mcnemar_midp, minimum_detectable

SETTINGS = {"dtype": "float32", "max_pixels": None, "torch": "2.13"}


def number_of(case: Case) -> int:
    return int(case.case_id[-3:])


def right_on(numbers: range, dimensions: tuple[str, ...] = ("accuracy",)) -> Rewards:
    return Rewards(
        lambda case: oracle(case)[:: 1 if number_of(case) in numbers else -1], dimensions
    )


def run(
    folder: Path, scorer: object, settings: Mapping[str, Any] = SETTINGS, count: int = 40
) -> Path:
    cases = make_cases("AB" * (count // 2))
    evaluate(scorer, make_benchmark(cases), folder, folder.name, settings=settings)
    return folder


def test_what_stands_beside_a_difference(tmp_path: Path) -> None:
    """Right before on 0-19, after on 10-35: 16 fixed, 10 broken, the rest alike."""
    before, after = (
        run(tmp_path / "b", right_on(range(20))),
        run(tmp_path / "a", right_on(range(10, 36))),
    )
    result = compare(before, after)
    entry = result["dimensions"]["accuracy"]
    counts = {name: entry[name] for name in ("both_right", "fixed", "broken", "both_wrong")}
    assert counts == {"both_right": 10, "fixed": 16, "broken": 10, "both_wrong": 4}
    assert sum(counts.values()) == entry["n"]
    assert entry["p_mcnemar"] == mcnemar_midp(16, 10)
    assert entry["p_holm"] == entry["p_unadjusted"] == entry["p"]  # of one dimension
    low, high = entry["ci95_bootstrap"]
    assert low < entry["delta"] < high
    least = result["minimum_detectable"]
    assert (least["n"], least["discordance"]) == (40, pytest.approx(26 / 40))
    assert least["points"] == minimum_detectable(40, 26 / 40, least["design_effect"])
    assert result["mean"]["delta"] == pytest.approx(entry["delta"])
    assert result["forward_only"] is None
    same = compare(before, before)["minimum_detectable"]
    assert (same["discordance"], same["points"]) == (0.0, None)
    few = [run(tmp_path / f"few-{n}", right_on(range(n, n + 2)), count=4) for n in (0, 1)]
    few_cases = compare(*few)["minimum_detectable"]
    assert (few_cases["discordance"], few_cases["points"]) == (0.5, None)
    # All of 20 cases from right in one order to right in both: they could show more than 0.25.
    half = run(tmp_path / "half", Judge(lambda c, o: float(o == "forward")), count=20)
    both = run(tmp_path / "both", Judge(lambda c, o: oracle(c)[0]), count=20)
    alike = compare(half, half)["dimensions"]["accuracy"]
    assert (alike["both_right"], alike["both_wrong"]) == (0, 20)
    halves = compare(half, both)["minimum_detectable"]
    assert halves["discordance"] == 0.25
    assert halves["points"] == minimum_detectable(20, 0.25) > 0.25


def test_cells_are_adjusted_by_group(tmp_path: Path) -> None:
    """Brain (even cases) gains 10 of 20, lung gains nothing."""
    before = run(tmp_path / "b", right_on(range(20)))
    gained = {*range(20), *range(20, 40, 2)}
    after = run(tmp_path / "a", right_on(gained))
    (group,) = (result := compare(before, after))["cells"]
    assert group == "organ"
    brain, lung = result["cells"]["organ"]
    assert [brain[key] for key in ("member", "dimension", "n")] == ["brain", "accuracy", 20]
    assert [brain[key] for key in ("before", "after", "delta")] == [0.5, 1.0, 0.5]
    assert brain["p"] == pytest.approx(2 / 2**10, abs=0.003)
    assert (lung["delta"], lung["p"]) == (0.0, 1.0)
    # No case of its 20 clusters changed: not certainly none of others.
    assert lung["ci95"] == pytest.approx([-0.1611, 0.1611], abs=1e-4)
    assert [brain["p_bh"], lung["p_bh"]] == benjamini_hochberg([brain["p"], lung["p"]])


def test_p_is_adjusted_for_dimensions_that_move_apart(tmp_path: Path) -> None:
    """6 clusters gain on accuracy, 6 others on overall: 2/2^6 alone, nearly twice that for two."""
    names = ("accuracy", "overall")
    benchmark = make_benchmark(make_cases("AB" * 20, "AB" * 20), names)
    gained = {"accuracy": range(12), "overall": range(28, 40)}

    def judge(learned: bool) -> Writer:
        def write(case: Case, order: str, *_: object) -> str:
            shown = (oracle(case)[0] == 1) == (order == "forward")
            right = {name: learned and number_of(case) in gained[name] for name in names}
            return json.dumps({name: "BA"[shown == right[name]] for name in names})

        return Writer(write, names)

    for name, learned in (("b", False), ("a", True)):
        evaluate(judge(learned), benchmark, tmp_path / name, name)
    result = compare(tmp_path / "b", tmp_path / "a")
    entries = [result["dimensions"][name] for name in names]
    alone = [entry["p_unadjusted"] for entry in entries]
    assert alone == pytest.approx([2 / 2**6] * 2, abs=0.006)
    assert [e["p"] for e in entries] == pytest.approx([1 - (1 - 2 / 2**6) ** 2] * 2, abs=0.01)
    assert [entry["p_holm"] for entry in entries] == holm(alone)
    assert result["primary"]["p"] == alone[1]


def test_the_mean_over_dimensions_weighs_them_alike(tmp_path: Path) -> None:
    """Accuracy 0 -> 1 on 20 of 40 cases; overall 0 -> 1 on all of its 20."""
    cases = make_cases("AB" * 20, "AB" * 10 + "-" * 20)
    benchmark = make_benchmark(cases, ("accuracy", "overall"))
    names = ("accuracy", "overall")
    evaluate(right_on(range(0), names), benchmark, tmp_path / "b", "b")
    evaluate(right_on(range(20), names), benchmark, tmp_path / "a", "a")
    mean = compare(tmp_path / "b", tmp_path / "a")["mean"]
    assert (mean["before"], mean["after"]) == (0.0, pytest.approx(0.75))
    assert mean["delta"] == pytest.approx((0.5 + 1) / 2)
    assert mean["n"] == 40


def test_the_stored_order_alone_and_position(tmp_path: Path) -> None:
    """The trained judge is right in the stored order of 30 cases, reversed in 10 of them only."""

    def rule(case: Case, order: str) -> float:
        right = number_of(case) < (30 if order == "forward" else 10)
        return oracle(case)[0] if right else 1 - oracle(case)[0]

    before, after = (
        run(tmp_path / "b", Judge(lambda c, o: 1 - oracle(c)[0])),
        run(tmp_path / "a", Judge(rule)),
    )
    result = compare(before, after)
    entry = result["forward_only"]["accuracy"]
    whole = result["dimensions"]["accuracy"]["delta"]
    assert (whole, entry["delta"]) == (pytest.approx(0.5), pytest.approx(0.75))
    assert entry["delta"] == pytest.approx(whole + entry["position"])
    (note,) = result["notes"]
    assert note.startswith("Part of the gain in the stored order is position: of its +75.0 points")
    assert "25.0 (95 % CI" in note
    # Where the stored order loses, too, no part of a gain is position.
    worse = run(tmp_path / "w", Judge(lambda c, o: oracle(c)[0]))
    assert compare(worse, tmp_path / "a")["notes"] == []
    # Before and after alike in both orders: nothing is position.
    assert compare(before, run(tmp_path / "c", Judge(lambda c, o: oracle(c)[0])))["notes"] == []


def test_a_gain_of_format_is_named(tmp_path: Path) -> None:
    """Right before as after, but before without creativity, for which the released rules drop all.

    The judge then learns to write all six, and nothing else.
    """
    cases = [
        replace(case, labels=dict.fromkeys(DIMENSIONS, case.labels["accuracy"]))
        for case in make_cases("AB" * 20)
    ]
    benchmark = make_benchmark(cases, DIMENSIONS)

    def names(dimensions: list[str]) -> Writer:
        def write(case: Case, order: str, *_: object) -> str:
            letter = "A" if (oracle(case)[0] == 1) == (order == "forward") else "B"
            return json.dumps(dict.fromkeys(dimensions, letter))

        return Writer(write, DIMENSIONS)

    five = [name for name in DIMENSIONS if name != "creativity"]
    evaluate(names(five), benchmark, tmp_path / "b", "b")
    evaluate(names(list(DIMENSIONS)), benchmark, tmp_path / "a", "a")
    result = compare(tmp_path / "b", tmp_path / "a")
    official = result["official"]["overall"]
    assert (official["before"], official["after"], official["delta"]) == (0.0, 1.0, 1.0)
    assert result["primary"]["delta"] == 0.0
    assert result["verdict"] == "Not shown"
    assert result["notes"] == [
        "Part of the official gain is output format: of its +100.0 points on overall, 100.0 "
        "(95 % CI +51.7 to +116.1) vanish when the same replies are read by the strict parser."
    ]
    assert result["gain"]["creativity"] == {"judgement": 0.0, "format": 1.0}
    assert compare(tmp_path / "a", tmp_path / "a")["notes"] == []


def test_a_gain_of_the_first_vote_is_no_format(tmp_path: Path) -> None:
    """The first of three votes becomes right, the majority stays wrong; all can be read."""
    cases = [
        replace(case, labels=dict.fromkeys(DIMENSIONS, case.labels["accuracy"]))
        for case in make_cases("AB" * 20)
    ]
    benchmark = make_benchmark(cases, DIMENSIONS)

    def votes(right: set[int]) -> Writer:
        def write(case: Case, order: str, _: object, vote: int) -> str:
            first = (oracle(case)[0] == 1) == (vote in right)
            return json.dumps(dict.fromkeys(DIMENSIONS, "AB"[first != (order == "forward")]))

        return Writer(write, DIMENSIONS, votes=3)

    for name, right in (("b", set()), ("a", {0})):
        evaluate(votes(right), benchmark, tmp_path / name, name)
    result = compare(tmp_path / "b", tmp_path / "a")
    assert (result["official"]["overall"]["delta"], result["primary"]["delta"]) == (1.0, 0.0)
    assert result["notes"] == []


def test_official_needs_both_sides(tmp_path: Path) -> None:
    before = run(tmp_path / "b", right_on(range(20)))
    benchmark = make_benchmark(make_cases("AB" * 20))
    evaluate(Rewards(oracle), benchmark, tmp_path / "a", "a", "robust", SETTINGS)
    assert compare(before, tmp_path / "a")["official"] is None
    entry = compare(before, run(tmp_path / "c", right_on(range(30))))["official"]["accuracy"]
    assert (entry["before"], entry["after"], entry["delta"]) == (0.5, 0.75, pytest.approx(0.25))


def test_pictures_stand_beside_the_headline(tmp_path: Path) -> None:
    before, after = (
        run(tmp_path / "b", right_on(range(20))),
        run(tmp_path / "a", right_on(range(36))),
    )
    controls = {
        "frozen_probe": before,
        "blank_images": run(tmp_path / "blank", right_on(range(20))),
        "text_only": run(tmp_path / "text", right_on(range(30))),
    }
    result = compare(before, after, controls=controls)
    found = result["pictures"]
    assert list(found["controls"]) == ["blank_images", "text_only"]
    blank = found["controls"]["blank_images"]
    assert (blank["accuracy"], blank["delta"]) == (0.5, pytest.approx(0.4))
    assert found["sentence"].startswith(
        "The trained model's 90.0 % on accuracy become 50.0 % with "
    )
    assert ") and 75.0 % without images (-15.0 points, 95 % CI" in found["sentence"]
    assert "not shown" not in found["sentence"]
    deaf = compare(before, after, controls={"blank_images": after})["pictures"]
    assert deaf["sentence"].endswith("It is not shown that the model needs the picture.")
    assert compare(before, after)["pictures"] is None
    other = run(tmp_path / "other", Rewards(lambda case: None), count=2)
    evaluate(Rewards(oracle), make_benchmark(make_cases("--" + "AB" * 19)), tmp_path / "c", "c")
    apart = compare(other, tmp_path / "c", "accuracy", {"blank_images": tmp_path / "c"})
    assert (apart["primary"]["delta"], apart["pictures"]) == (None, None)


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_every_setting_is_compared(tmp_path: Path, name: str) -> None:
    before = run(tmp_path / "b", right_on(range(20)))
    after = run(tmp_path / "a", right_on(range(36)), SETTINGS | {name: "other"})
    result = compare(before, after)
    assert result["differences"] == {name: {"before": SETTINGS[name], "after": "other"}}
    assert (result["comparable"], result["verdict"]) == (False, "Not shown")
    assert compare(before, after, allowed_differences=[name])["verdict"] == "Improved"


def test_settings_that_belong_to_a_readout_need_no_declaration(tmp_path: Path) -> None:
    """A judge's prompt against the length limit of scores; what both have still counts."""
    judge = Judge(lambda case, order: float(order == "forward"))
    before = run(tmp_path / "b", judge, SETTINGS | {"prompt": "json 1", "votes": 1})
    after = run(tmp_path / "a", right_on(range(40)), SETTINGS | {"max_length": 2048})
    assert list(compare(before, after)["differences"]) == ["readout"]
    assert compare(before, after, allowed_differences=["readout"])["verdict"] == "Improved"
    other = run(tmp_path / "o", right_on(range(40)), SETTINGS | {"dtype": "bfloat16"})
    assert list(compare(before, other)["differences"]) == ["readout", "dtype"]
    assert not compare(before, other, allowed_differences=["readout"])["comparable"]


def test_an_unknown_declaration_is_an_error(tmp_path: Path) -> None:
    before = run(tmp_path / "b", right_on(range(20)))
    with pytest.raises(ConfigError, match=r"'readuot' is not compared\. Did you mean 'readout'"):
        compare(before, before, allowed_differences=["readuot", "dtype"])
    assert not (tmp_path / "b" / "comparison.json").exists()


def test_parts_of_a_benchmark_are_no_headline(tmp_path: Path) -> None:
    before, after = (
        run(tmp_path / "b", right_on(range(20))),
        run(tmp_path / "a", right_on(range(38)), count=38),
    )
    result = compare(before, after)
    assert result["differences"]["cases"] == {"before": 40, "after": 38, "shared": 38}
    assert result["verdict"] == "Not shown"
    assert "cases (40 -> 38)" in result["headline"]


def test_labels_of_the_shared_cases_are_compared(tmp_path: Path) -> None:
    """Declaring that the cases differ does not declare that their labels do."""
    before = run(tmp_path / "b", right_on(range(20)))
    evaluate(Rewards(oracle), make_benchmark(make_cases("BA" * 19)), tmp_path / "a", "a")
    result = compare(before, tmp_path / "a", allowed_differences=["cases", *SETTINGS])
    assert {"cases", "labels"} <= set(result["differences"])
    assert (result["comparable"], result["verdict"]) == (False, "Not shown")


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("labels", lambda row: row | {"cluster": "another"}),
        ("orders", lambda row: row if row["order"] == "forward" else None),
        ("dimensions", lambda row: row if row["dimension"] == "accuracy" else None),
    ],
)
def test_verdicts_of_another_kind_are_no_headline(
    tmp_path: Path, name: str, changed: Callable[[dict[str, Any]], dict[str, Any] | None]
) -> None:
    """Clusters, orders and dimensions, that no setting tells."""
    names = ("accuracy", "overall")

    def write(case: Case, order: str, *_: object) -> str:
        first = (oracle(case)[0] == 1) == (order == "forward")
        return json.dumps(dict.fromkeys(names, "A" if first else "B"))

    benchmark = make_benchmark(make_cases("AB" * 20, "AB" * 20), names)
    for folder in ("b", "a"):
        evaluate(Writer(write, names), benchmark, tmp_path / folder, folder)
    assert compare(tmp_path / "b", tmp_path / "a")["differences"] == {}
    path = tmp_path / "a" / "verdicts.jsonl"
    rows = [changed(json.loads(line)) for line in path.read_text("utf-8").splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows if row), "utf-8")
    result = compare(tmp_path / "b", tmp_path / "a")
    assert (list(result["differences"]), result["comparable"]) == ([name], False)


def test_the_same_weights_are_named(tmp_path: Path) -> None:
    before, after = (
        run(tmp_path / "b", right_on(range(20))),
        run(tmp_path / "a", right_on(range(36))),
    )
    for folder in (before, after):
        write_json(folder / "report.json", read_json(folder / "report.json") | {"weights": "w"})
    assert compare(before, after)["notes"] == ["Both evaluations are of the same weights."]


def test_pooled_folds_are_named_once(tmp_path: Path) -> None:
    before, after = (
        run(tmp_path / "b", right_on(range(20))),
        run(tmp_path / "a", right_on(range(36))),
    )
    report = read_json(after / "report.json")
    write_json(after / "report.json", report | {"crossfit": {"folds": 3, "per_fold": []}})
    (note,) = compare(before, after)["notes"]
    assert note.startswith("Conditional on these k = 3 models")
    assert compare(before, after, notes=notes_of_folds(3, 7))["notes"] == notes_of_folds(3, 7)


def test_a_report_of_another_version_is_refused(tmp_path: Path) -> None:
    before = run(tmp_path / "b", right_on(range(20)))
    report = read_json(before / "report.json")
    del report["structure"]
    write_json(before / "report.json", report)
    with pytest.raises(DataError, match="another version"):
        compare(before, before)


def test_the_gate_has_a_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = run(tmp_path / "g", right_on(range(36))), run(tmp_path / "b", right_on(range(20)))
    other = run(tmp_path / "o", right_on(range(40)), SETTINGS | {"dtype": "bfloat16"})
    assert main(["compare", str(good), str(bad)]) == 0
    assert main(["compare", str(good), str(bad), "--gate"]) == 1
    assert main(["compare", str(bad), str(good), "--gate"]) == 0
    assert main(["compare", str(bad), str(other), "--gate"]) == 1
    assert main(["compare", str(bad), str(other), "--gate", "--allowed_differences", "dtype"]) == 0
    assert main(["compare", str(bad), str(other), "--allowed_differences", "dtyp"]) == 2
    assert "Did you mean 'dtype'" in capsys.readouterr().err


def test_the_order_of_rows_changes_no_byte(tmp_path: Path) -> None:
    generator = random.Random(2)
    benchmark = make_benchmark(make_cases("AB" * 20, "AB--" * 10), ("accuracy", "overall"))
    judged = ("accuracy", "overall")
    for name, seed in (("b", 1), ("a", 2)):
        chance = random.Random(seed)
        right = {case.case_id: chance.random() < 0.4 * seed for case in benchmark.cases}
        scorer = Rewards(
            lambda case, r=right: oracle(case)[:: 1 if r[case.case_id] else -1], judged
        )
        evaluate(scorer, benchmark, tmp_path / name, name)
    contents = set()
    for _ in range(3):
        compare(tmp_path / "b", tmp_path / "a")
        contents.add((tmp_path / "a" / "comparison.json").read_bytes())
        for name in ("b", "a"):
            path = tmp_path / name / "verdicts.jsonl"
            lines = path.read_text("utf-8").splitlines(keepends=True)
            generator.shuffle(lines)
            path.write_text("".join(lines), "utf-8")
    assert len(contents) == 1
    assert digest_of(benchmark.cases) == digest_of(benchmark.cases[::-1])
