"""Reading and scoring again what a model has said."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path

import pytest
from mock_scorers import DIMENSIONS as TWO
from mock_scorers import Judge, Rewards, Writer, make_benchmark, make_cases, oracle, ranked_case

from medrm.chat import PROMPTS
from medrm.cli import main
from medrm.errors import ConfigError, DataError
from medrm.evaluation import report
from medrm.evaluation.evaluator import evaluate, rescore
from medrm.evaluation.records.jsonl import read_verdicts
from medrm.schema import DIMENSIONS, Case

DERIVED = ("evaluation.json", "cases.jsonl", "verdicts.jsonl", "report.json", "official.csv")


def contents(folder: Path, names: tuple[str, ...] = DERIVED) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}


def written(case: Case, order: str, name: str | None, vote: int) -> str | None:
    """Some of everything: no call, no verdict, a tie, one vote against another."""
    number = int(case.case_id[-3:])
    if number == 1:
        return None
    letter = "AB"[(number + vote + (order == "reversed")) % 2]
    verdict = PROMPTS["json"].verdict(dict.fromkeys(DIMENSIONS, letter)).text
    return {2: "no idea", 3: verdict.replace(f'"{letter}"', '"tie"', 1)}.get(number, verdict)


SCORERS = {
    "rewards": Rewards(lambda case: None if case.case_id[-1] == "3" else oracle(case), TWO),
    "judge": Judge(lambda case, order: 0.3 if case.case_id[-1] in "13" else 0.8),
    "votes": Writer(written, DIMENSIONS, votes=3),
    "apart": Writer(lambda *_: '{"accuracy": "A", "overall": "B"}', TWO, per_dimension=True),
}


@pytest.mark.parametrize("name", list(SCORERS))
def test_nothing_changes(tmp_path: Path, name: str) -> None:
    benchmark = make_benchmark(make_cases("AABtB-BA", "ABABABAB"), TWO)
    evaluate(SCORERS[name], benchmark, tmp_path, "m", settings={"prompt": "json 1", "t": 0.1})
    before = contents(tmp_path)
    for _ in range(2):
        rescore(tmp_path)
        assert contents(tmp_path) == before
    file = tmp_path / "responses.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    random.Random(0).shuffle(lines)
    file.write_text("".join(lines), encoding="utf-8")
    rescore(tmp_path)
    assert contents(tmp_path) == before


def test_more_than_two_answers(tmp_path: Path) -> None:
    benchmark = make_benchmark([ranked_case(0, 1), ranked_case(1, 2), *make_cases("AB")])
    evaluate(Rewards(lambda case: range(len(case.answers))), benchmark, tmp_path, "m")
    before = contents(tmp_path)
    rescore(tmp_path)
    assert contents(tmp_path) == before


def test_another_protocol(tmp_path: Path) -> None:
    evaluate(SCORERS["votes"], make_benchmark(make_cases("AABB")), tmp_path, "m", "robust")
    assert not (tmp_path / "official.csv").exists()
    assert set(rescore(tmp_path, "both")["protocols"]) == {"official", "robust"}
    assert (tmp_path / "official.csv").exists()
    rescore(tmp_path, "robust")
    assert not (tmp_path / "official.csv").exists()
    assert {row.protocol for row in read_verdicts(tmp_path / "verdicts.jsonl")} == {"robust"}
    with pytest.raises(ConfigError, match="Did you mean 'robust'"):
        rescore(tmp_path, "robus")


def test_what_cannot_be_scored_again(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no evaluation\.json"):
        rescore(tmp_path)
    evaluate(SCORERS["apart"], make_benchmark(make_cases("AB", "AB"), TWO), tmp_path, "m")
    with pytest.raises(ConfigError, match="one reply on all"):
        rescore(tmp_path, "official")
    before = contents(tmp_path)
    path = tmp_path / "responses.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[1:]))
    with pytest.raises(DataError, match="case-000: calls are missing"):
        rescore(tmp_path)
    path.write_text("".join([*lines[:4], *lines]))
    with pytest.raises(DataError, match="case-000: calls are missing or doubled"):
        rescore(tmp_path)
    path.write_text("".join(lines[:4]))
    with pytest.raises(DataError, match="case-001: nothing was said"):
        rescore(tmp_path)
    path.write_text("".join(lines).replace('"dimension": "overall"', '"dimension": "other"'))
    with pytest.raises(DataError, match="'other'"):
        rescore(tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "change",
    [
        {"dimensions": 5},
        {"settings": []},
        {"readout": 3},
        {"protocol": "x"},
        {"benchmark": 5},
        {"benchmark": {"metrics": ["x"]}},
    ],
)
def test_an_odd_setup_is_named(tmp_path: Path, change: dict[str, object]) -> None:
    evaluate(SCORERS["apart"], make_benchmark(make_cases("AB"), TWO), tmp_path, "m")
    path = tmp_path / "evaluation.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(change.get("benchmark"), dict):
        change = {"benchmark": record["benchmark"] | change["benchmark"]}
    path.write_text(json.dumps(record | change), encoding="utf-8")
    with pytest.raises((DataError, ConfigError), match=r"not one of ours|'x' is unknown"):
        rescore(tmp_path)


def test_replies_are_read_again(tmp_path: Path) -> None:
    """What is edited in them shows."""
    evaluate(SCORERS["votes"], make_benchmark(make_cases("AABB")), tmp_path, "m")
    path = tmp_path / "responses.jsonl"
    path.write_text(path.read_text().replace("no idea", '{\\"accuracy\\": \\"B\\"}'))
    rescore(tmp_path)
    rows = [row for row in read_verdicts(tmp_path / "verdicts.jsonl") if row.case_id == "case-002"]
    assert {(row.order, row.outcome) for row in rows if row.protocol == "robust"} == {
        *(("forward", "B"), ("reversed", "A"))
    }


def test_what_the_released_scorer_reads(tmp_path: Path) -> None:
    """Its rule, applied to the files: equality of each letter, over all cases of an organ."""
    labels = make_cases("ABBAAB", "BBBAAA")
    benchmark = make_benchmark(labels, TWO)
    judge = Writer(lambda case, *_: PROMPTS["json"].verdict(answers(case)).text, DIMENSIONS)
    report = evaluate(judge, benchmark, tmp_path, "m")
    assert main(["rescore", str(tmp_path)]) == 0
    for organ in ("brain", "lung"):
        said = {}
        for line in (
            (tmp_path / "official" / "responses" / f"{organ}.jsonl").read_text().splitlines()
        ):
            record = json.loads(line)
            assert record["modality_type"] == organ
            said[record["question_id"]] = json.loads(record["chosen_answer"])
        label = {}
        for line in (tmp_path / "official" / "labels" / f"{organ}.jsonl").read_text().splitlines():
            record = json.loads(line)
            label[record["question_id"]] = record["human_answer"]
            assert set(record["human_answer"]) == set(DIMENSIONS)
        for name in TWO:
            right = sum(said[key][name] == label[key][name] for key in label)
            cells = report["protocols"]["official"]["organs"][organ]
            assert cells[name] == pytest.approx(right / len(label))


def answers(case: Case) -> dict[str, str]:
    number = int(case.case_id[-3:])
    return {name: "AB"[(number // 2 + len(name)) % 2] for name in DIMENSIONS}


def test_what_changes_rounding_alone_bars_no_comparison(tmp_path: Path) -> None:
    settings = {"dtype": "float32", "attn_implementation": "eager"}
    benchmark = make_benchmark(make_cases("AB"))
    report = evaluate(SCORERS["judge"], benchmark, tmp_path, "m", settings=settings)
    assert report["settings"] == {"dtype": "float32"}
    assert report["rounding"] == {"attn_implementation": "eager"}
    before = contents(tmp_path)
    rescore(tmp_path)
    assert contents(tmp_path) == before


def test_an_evaluation_of_rewards_by_version_0_1_says_what_to_do(tmp_path: Path) -> None:
    """That version kept no responses of reward models; their verdicts compare and report."""
    evaluate(SCORERS["rewards"], make_benchmark(make_cases("AB", "AB"), TWO), tmp_path, "m")
    (tmp_path / "responses.jsonl").unlink()
    before = contents(tmp_path)
    with pytest.raises(DataError, match=r"kept none of reward models.*start the same"):
        rescore(tmp_path)
    assert contents(tmp_path) == before


def test_lines_of_a_judge_of_version_0_1_are_read(tmp_path: Path) -> None:
    evaluate(SCORERS["judge"], make_benchmark(make_cases("AB")), tmp_path, "m")
    before, path = contents(tmp_path), tmp_path / "responses.jsonl"
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert {record.pop("rewards") for record in records} == {None}
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), "utf-8")
    rescore(tmp_path)
    assert contents(tmp_path) == before


def test_a_report_stands_for_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it is stopped: what goes on takes an evaluation with a report for whole."""
    evaluate(SCORERS["votes"], make_benchmark(make_cases("AABB")), tmp_path, "m")
    write = report.write_atomically

    def full_at_official(path: Path, chunks: Iterable[bytes]) -> None:
        if path.name == "official.csv":
            raise OSError("stopped")
        write(path, chunks)

    monkeypatch.setattr("medrm.evaluation.report.write_atomically", full_at_official)
    with pytest.raises(OSError, match="stopped"):
        rescore(tmp_path)
    assert "report.json" not in contents(tmp_path)
