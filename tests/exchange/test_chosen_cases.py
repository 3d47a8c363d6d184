"""Which cases a further reader is given, and what is said of options that do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medrm.cli import main
from medrm.evaluation.records.jsonl import write_rows
from medrm.schema import Verdict


def chosen(source: Path, output: Path, *options: str) -> list[str]:
    """The ids of the cases in an export, in its order."""
    argv = ["data", "export", str(source), "--to", "label_studio", "--output", str(output)]
    assert main([*argv, "--overwrite_output_dir", *options]) == 0
    lines = (output / "cases.jsonl").read_text("utf-8").split("\n")[:-1]
    return [json.loads(case)["case_id"] for case in lines]


@pytest.fixture(scope="module")
def disputed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five cases, the last read by one reader alone."""
    given = {"e": "AAA", "d": "AAB", "c": "ABt", "b": "AAB", "a": "A"}
    path = tmp_path_factory.mktemp("disputed") / "votes.jsonl"
    rows = [
        {
            "case_id": name,
            "annotator": f"reader-{n}",
            "images": [],
            "question": f"What of {name}?",
            "answers": ["yes", "no"],
            "votes": {"overall": "tie" if v == "t" else v, "other": "A"},
        }
        for name, given_votes in given.items()
        for n, v in enumerate(given_votes)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_least_agreed_cases_come_first_and_their_ids_decide_among_equals(
    disputed: Path, tmp_path: Path
) -> None:
    overall = ("--dimensions", "overall")
    assert chosen(disputed, tmp_path / "o") == ["e", "d", "c", "b", "a"]
    assert chosen(disputed, tmp_path / "o", "--least_agreed", "9", *overall) == ["c", "b", "d", "e"]
    assert chosen(disputed, tmp_path / "o", "--least_agreed", "2", *overall) == ["c", "b"]
    assert chosen(disputed, tmp_path / "o", "--least_agreed", "9", "--limit", "1") == ["c"]
    assert chosen(disputed, tmp_path / "o", "--limit", "2") == ["e", "d"]
    (tmp_path / "ids").write_text("a\n\nd\nc\n")
    assert chosen(disputed, tmp_path / "o", "--cases", str(tmp_path / "ids")) == ["a", "d", "c"]
    both = ("--cases", str(tmp_path / "ids"), "--least_agreed", "5")
    assert chosen(disputed, tmp_path / "o", *both) == ["c", "d"]


def test_cases_where_a_model_differs_come_by_its_confidence(disputed: Path, tmp_path: Path) -> None:
    def verdict(case_id: str, order: Any, outcome: str, label: Any, **stated: Any) -> Verdict:
        return Verdict(case_id, "overall", "robust", order, outcome, label=label, **stated)

    rows = [
        verdict("e", "forward", "B", "A", probability_a=0.2),
        verdict("e", "reversed", "B", "A", probability_a=0.4),
        verdict("d", "forward", "A", "A", probability_a=0.9),
        verdict("c", "forward", "A", None, probability_a=0.99),
        verdict("b", "forward", "B", "A", score_a=-3.0, score_b=1.0),
        verdict("a", "forward", "A", "tie", probability_a=0.7),
        verdict("gone", "forward", "B", "A", probability_a=0.0),
        Verdict("d", "overall", "official", "forward", "B", label="A", probability_a=0.0),
    ]
    write_rows(tmp_path / "verdicts.jsonl", rows)
    options = ("--model_disagrees", str(tmp_path))
    # Sure of what the experts do not say: b by sigmoid(4), then a and e by 0.7.
    assert chosen(disputed, tmp_path / "o", *options) == ["b", "a", "e"]
    assert chosen(disputed, tmp_path / "o", *options, "--limit", "1") == ["b"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--to", "trl", "--seed", "1"], "--seed is not for --to trl"),
        (["--to", "trl", "--dimensions", "overal"], "Did you mean 'overall'?"),
        (["--to", "label_studio", "--dimensions", "Overall"], "write 'overall'"),
        (["--to", "sheet", "--limit", "0"], "give 1 or more"),
        (["--to", "sheet", "--cases", "IDS"], "there is no case 'nobody'"),
        (["--to", "sheet", "--least_agreed", "1", "--model_disagrees", "."], "give one"),
        (["--to", "sheet", "--model_disagrees", "."], "There are no verdicts at"),
        (["--to", "excel"], "invalid choice: 'excel'"),
    ],
)
def test_what_is_not_accepted_is_said_before_anything_is_written(
    disputed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "IDS").write_text("nobody\n")
    try:
        status = main(["data", "export", str(disputed), "--output", "out", *options])
    except SystemExit as refusal:
        status = int(refusal.code or 0)
    assert status == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
