"""What a judge learns to reply: label rules, both orders, fillers, flips and reasons."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from judging import FIRST, SECOND, TIE, Judging, judged

from medrm.chat import PROMPTS, rationale_letters
from medrm.errors import DataError
from medrm.objectives.judge.judge_examples import (
    drawn_dimension,
    filler_answer,
    judge_examples,
    learned_answer,
    read_rationales,
)
from medrm.objectives.judge.judge_sft import run_examples
from medrm.objectives.objective import TrainingInputs
from medrm.parsers import parse_verdict
from medrm.schema import Case, PairLabel

SPLIT, LEAD = (0.5, 0.0, 0.5), (0.4, 0.3, 0.3)
BOTH = ("accuracy", "overall")
JSON, EACH, REASONS = PROMPTS["json"], PROMPTS["json_per_dimension"], PROMPTS["rationale_json"]


def test_label_rules() -> None:
    def learned(shares: tuple[float, float, float], rule: Any) -> int | None:
        return learned_answer(judged(1, accuracy=shares), "accuracy", rule)

    for rule in ("majority", "plurality", "sampled"):
        assert (learned(FIRST, rule), learned(SECOND, rule)) == (0, 1)
        assert learned_answer(judged(1, accuracy=FIRST), "overall", rule) is None
    assert (learned(LEAD, "majority"), learned(LEAD, "plurality")) == (None, 0)
    assert learned((0.3, 0.3, 0.4), "plurality") == 1
    for shares in (TIE, SPLIT):
        assert learned(shares, "majority") is None
        assert learned(shares, "plurality") is None


def test_sampled_labels_have_the_shares_of_the_votes() -> None:
    cases = [judged(number, accuracy=(0.6, 0.2, 0.2)) for number in range(2000)]
    drawn = [learned_answer(case, "accuracy", "sampled") for case in cases]
    assert drawn == [learned_answer(case, "accuracy", "sampled") for case in cases]
    # Standard error of the share: sqrt(.7 * .3 / 2000) = .01.
    assert sum(answer == 0 for answer in drawn) / 2000 == pytest.approx(0.7, abs=0.04)
    fillers = [filler_answer(case, "accuracy") for case in cases]
    assert sum(fillers) / 2000 == pytest.approx(0.5, abs=0.045)


def test_both_orders_name_the_same_answer_and_share_the_filler() -> None:
    case = judged(2, accuracy=SECOND, overall=TIE)
    forward, reverse = judge_examples([case], BOTH, JSON, "majority")
    assert (forward.order, reverse.order) == ("forward", "reversed")
    assert forward.shown(case.answers) == case.answers
    assert reverse.shown(case.answers) == case.answers[::-1]
    assert (forward.letters["accuracy"], reverse.letters["accuracy"]) == ("B", "A")
    parity = int(hashlib.sha256(b"case-2\0overall").hexdigest(), 16) % 2
    assert (forward.letters["overall"], reverse.letters["overall"]) == (
        "AB"[parity],
        "BA"[parity],
    )
    assert forward.learned == reverse.learned == ("accuracy",)
    text, unlearned = forward.reply(JSON)
    assert text == json.dumps(dict(forward.letters))
    ((start, end),) = unlearned
    assert text[:start].endswith('"overall": "')
    assert text[start:end] == forward.letters["overall"]


def test_each_dimension_in_a_call_of_its_own_has_rows_where_it_is_labelled() -> None:
    case = judged(2, accuracy=SECOND, overall=TIE)
    rows = judge_examples([case], BOTH, EACH, "majority")
    assert [(row.order, dict(row.letters)) for row in rows] == [
        ("forward", {"accuracy": "B"}),
        ("reversed", {"accuracy": "A"}),
    ]
    assert rows[0].reply(EACH).unlearned == ()


def test_flips_keep_the_filler() -> None:
    (row, _) = judge_examples([judged(3, accuracy=FIRST, overall=TIE)], BOTH, JSON, "majority")
    correct, flipped = (json.loads(row.reply(JSON, names).text) for names in ((), row.learned))
    assert (correct["accuracy"], flipped["accuracy"]) == ("A", "B")
    assert correct["overall"] == flipped["overall"]
    cases = [judged(number) for number in range(40)]
    rows = judge_examples(cases, BOTH, JSON, "majority")
    drawn = [drawn_dimension(row) for row in rows]
    assert drawn[::2] == drawn[1::2]
    assert set(drawn) == set(BOTH)


def test_cases_that_teach_nothing_are_counted(judging: Callable[..., Judging], caplog: Any) -> None:
    ranked = Case("three", (), "?", ("a", "b", "c"), {"accuracy": PairLabel(FIRST)})
    cases = [judged(1, accuracy=FIRST), judged(2, accuracy=TIE), judged(3, accuracy=SPLIT), ranked]
    built = judging("judge_sft")
    examples = run_examples(
        TrainingInputs(built.run, built.model, built.collator, cases, cases[:1], {})
    )
    assert {example.case.case_id for example in examples.train} == {"case-1"}
    warnings = [r.getMessage() for r in caplog.records if r.name.startswith("medrm")]
    assert warnings == [
        "3 of 4 cases carry no label to learn from (label_rule majority; two answers each)"
    ]


@pytest.mark.parametrize("rule", ["majority", "plurality", "sampled"])
def test_nothing_is_learned_where_no_answer_is_acceptable(rule: Any) -> None:
    labels = {"accuracy": PairLabel(FIRST, 1, 0.6), "overall": PairLabel(FIRST, 2, 0.4)}
    case = Case("one", (), "?", ("a", "b"), labels)
    assert [learned_answer(case, name, rule) for name in labels] == [None, 0]


def test_reasons_name_the_shown_answers_and_end_with_our_letter() -> None:
    case = judged(1, accuracy=FIRST, overall=TIE)
    rationales = {"case-1": {"accuracy": "Answer B misses what answer A says.", "overall": "Same."}}
    forward, reverse = judge_examples([case], BOTH, REASONS, "majority", rationales)
    filler = forward.letters["overall"]
    text, unlearned = forward.reply(REASONS)
    lines = text.splitlines()
    assert lines[0] == "accuracy: Answer B misses what answer A says. better: A"
    # Nothing is claimed of what the experts did not decide.
    assert lines[1] == f"overall: better: {filler}"
    assert json.loads(lines[2]) == {"accuracy": "A", "overall": filler}
    assert [text[start:end] for start, end in unlearned] == [filler, filler]
    assert text[: unlearned[0][1]].endswith(f"overall: better: {filler}")
    text, _ = reverse.reply(REASONS)
    assert text.startswith("accuracy: Answer A misses what answer B says. better: B\n")
    for row in (forward, reverse):
        for flipped in ((), row.learned):
            reply = row.reply(REASONS, flipped).text
            letters = rationale_letters(reply, BOTH)
            assert letters == parse_verdict(reply, "strict", BOTH).outcomes
            assert (letters == row.letters) == (flipped == ())
    bare = judge_examples([case], BOTH, REASONS, "majority")[0].reply(REASONS).text
    assert bare.startswith("accuracy: better: A\noverall: better: ")


def test_reasons_are_read_and_every_bad_line_is_named(tmp_path: Path, caplog: Any) -> None:
    path = tmp_path / "reasons.jsonl"

    def write(*lines: Any) -> None:
        texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
        path.write_text("\n".join(texts), encoding="utf-8")

    write(
        {"case_id": "case-1", "rationale": {"accuracy": " Yes. ", "other": "Not asked."}},
        "",
        {"case_id": "elsewhere", "rationale": {}},
    )
    assert read_rationales(path, BOTH, {"case-1"}) == {"case-1": {"accuracy": "Yes."}}
    assert "1 of 2 rationales belong to no training or development case" in caplog.text
    write(
        "{",
        {"case_id": 3, "rationale": {}},
        {"case_id": "case-1", "rationale": {"accuracy": ""}},
        {"case_id": "case-1", "rationale": {"accuracy": "one\ntwo"}},
        {"case_id": "case-2", "rationale": {"accuracy": "better: B"}},
        {"case_id": "case-3", "rationale": {}},
        {"case_id": "case-3", "rationale": {}},
        {"case_id": "case-4"},
    )
    with pytest.raises(DataError) as caught:
        read_rationales(path, BOTH, {"case-1"})
    for number in (1, 2, 3, 4, 5, 7, 8):
        assert f"line {number}: " in str(caught.value)
    assert "line 6" not in str(caught.value)
    with pytest.raises(DataError, match="cannot be read"):
        read_rationales(tmp_path / "none", BOTH, ())


def test_rows_and_rewards_need_no_torch() -> None:
    code = (
        "import sys; import medrm.objectives.judge.judge_examples; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
