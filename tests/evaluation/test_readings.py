"""From a judge's responses to verdict rows, worked out by hand."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest
from mock_scorers import Answered, Writer, make_benchmark, make_cases
from rich.console import Console

from medrm.errors import ConfigError, DataError
from medrm.evaluation.evaluator import evaluate, rescore
from medrm.evaluation.pages.report_page import write_page
from medrm.evaluation.records.jsonl import read_responses, read_verdicts
from medrm.evaluation.report import read_report
from medrm.evaluation.tables.terminal import print_report
from medrm.schema import DIMENSIONS, Case, Order, Response, Verdict
from medrm.scorer.verdict_rules import verdicts_of

CASE = make_cases("A")[0]
Call = partial(Answered, CASE.case_id)


def verdict(letter: str, **others: str) -> str:
    return json.dumps(dict.fromkeys(DIMENSIONS, letter) | others)


def rows(
    calls: Sequence[Response], protocol: str = "robust", asked: Sequence[str] = DIMENSIONS
) -> list[Verdict]:
    return verdicts_of(CASE, calls, asked, ("accuracy", "overall"), (protocol,))


def read(calls: Sequence[Response], protocol: str = "robust") -> tuple[object, object, object]:
    """Outcome, reason and probability on accuracy."""
    row = rows(calls, protocol)[0]
    assert row.dimension == "accuracy"
    return row.outcome, row.reason, row.probability_a


@pytest.mark.parametrize(
    ("order", "letter", "outcome"),
    [
        ("forward", "A", "A"),
        ("forward", "B", "B"),
        ("reversed", "A", "B"),
        ("reversed", "B", "A"),
        ("forward", "tie", "tie"),
        ("reversed", "tie", "tie"),
    ],
)
def test_letters_as_shown_become_stored_answers(order: Order, letter: str, outcome: str) -> None:
    assert read([Call(order, text=verdict("B", accuracy=letter))]) == (outcome, None, None)


def test_votes() -> None:
    """The majority of what was read; of the votes for A or B, the share for A is stated."""

    def votes(*letters: str, order: Order = "forward") -> list[Response]:
        return [
            Call(order, vote=number, readout="votes", text=verdict(letter))
            for number, letter in enumerate(letters)
        ]

    assert read(votes("A", "A", "B")) == ("A", None, pytest.approx(2 / 3))
    assert read(votes("A", "A", "B", order="reversed")) == ("B", None, pytest.approx(1 / 3))
    assert read(votes("?", "?", "B")) == ("B", None, 0.0)
    assert read(votes("tie", "tie", "A", "B", "B")) == ("unread", "votes_split", None)
    assert read(votes("tie", "tie", "A")) == ("tie", None, 1.0)
    assert read(votes("tie", "tie")) == ("tie", None, None)
    assert read(votes("A", "B")) == ("unread", "votes_split", None)
    outcome, reason, probability = read(votes("?", "?"))
    assert (outcome, probability) == ("unread", None)
    assert reason.startswith("not A, B or tie")
    # The released scorer reads one reply: the first.
    assert read(votes("B", "A", "A"), "official") == ("B", None, None)
    assert read(votes("tie", "A", "A"), "official")[0] == "unread"


def test_why_nothing_was_read() -> None:
    long = partial(Call, "forward", finish_reason="length")
    assert read([long(text='{"accuracy": "A", "rel')]) == ("unread", "cut_off", None)
    assert read([long(text=verdict("A") + " and then it goes on")]) == ("A", None, None)
    failed = partial(Call, "forward", finish_reason=None)
    assert read([failed(state="error", reason="HTTP 503: busy")])[1] == "HTTP 503: busy"
    assert read([failed(state="error")])[1] == "error"
    assert read([failed(state="too_long", reason="HTTP 400: 9000 tokens")])[1] == "too_long"
    assert read([Call("forward", text="I cannot say.")])[:2] == ("unread", "no JSON object")
    # One bad dimension voids nothing but itself; the released scorer drops the reply.
    partly = [Call("forward", text=verdict("A", overall="neither"))]
    assert [row.outcome for row in rows(partly)] == ["A", "unread"]
    assert [row.outcome for row in rows(partly, "official")] == ["unread", "unread"]
    assert rows(partly, "official")[0].reason.startswith("dropped")
    # One letter is copied to all six by the released scorer, and by nobody else.
    one = [Call("forward", text='{"accuracy": "A"}')]
    assert [row.outcome for row in rows(one)] == ["A", "unread"]
    assert [row.outcome for row in rows(one, "official")] == ["A", "A"]


def test_the_released_misreading_stays_in_its_own_protocol() -> None:
    calls = [Call(order, text=verdict("Assistant B")) for order in ("forward", "reversed")]
    official = rows(calls, "official")
    assert [(row.order, row.outcome) for row in official] == [("forward", "A")] * 2
    assert {row.outcome for row in rows(calls)} == {"unread"}


def test_one_dimension_a_call() -> None:
    """No official rows: its rules want six dimensions in one reply."""
    calls = [
        Call(order, dimension=name, text=json.dumps({name: "A"}))
        for order in ("forward", "reversed")
        for name in DIMENSIONS
    ]
    assert [(row.order, row.dimension, row.outcome) for row in rows(calls)] == [
        ("forward", "accuracy", "A"),
        ("forward", "overall", "A"),
        ("reversed", "accuracy", "B"),
        ("reversed", "overall", "B"),
    ]
    assert rows(calls, "official") == []
    assert rows([Call("forward", text=verdict("A"))], "official", DIMENSIONS[:2]) == []
    letter = [Call("forward", dimension="accuracy", text="B."), *calls[1:6]]
    assert read(letter)[0] == "B"
    with pytest.raises(DataError, match=r"no response about case 'case-000' \(forward\) on"):
        rows(calls[:1])


def test_probabilities_of_all_dimensions_in_one_response() -> None:
    chances = dict.fromkeys(DIMENSIONS, (0.2, 0.6, 0.8))
    call = Call("reversed", readout="skeleton", probabilities=chances)
    assert read([call]) == ("B", None, pytest.approx(0.25))  # the stored frame already
    nothing = replace(call, probabilities=dict.fromkeys(DIMENSIONS, (0.0, 0.0, 0.0)))
    assert read([nothing]) == ("unread", "no_mass", None)
    assert len(rows([replace(call, order="forward")], "official")) == 2
    broken = replace(call, probabilities=dict.fromkeys(DIMENSIONS, (math.nan, 0.5, math.nan)))
    with pytest.raises(ValueError, match=r"case-000.*nan"):
        rows([broken])


def test_a_dimension_besides_the_six_has_no_official_verdict() -> None:
    """The released scorer knows no other; counted as wrong it would look like a bad judge."""
    asked = (*DIMENSIONS, "safety")
    call = Call("forward", text=json.dumps(dict.fromkeys(asked, "A")))
    found = verdicts_of(CASE, [call], asked, ("accuracy", "safety"))
    assert [(row.protocol, row.dimension, row.outcome) for row in found] == [
        ("robust", "accuracy", "A"),
        ("robust", "safety", "A"),
        ("official", "accuracy", "A"),
    ]


def test_of_more_than_two_answers_the_one_that_wins_most_is_preferred() -> None:
    case = replace(CASE, answers=("a", "b", "c"), labels={})

    def preferred(*letters: str) -> tuple[object, ...]:
        """What three comparisons say: of 0 with 1, of 0 with 2, of 1 with 2."""
        calls = [
            Call("forward", text=letter and verdict(letter), pair=pair)
            for letter, pair in zip(letters, ((0, 1), (0, 2), (1, 2)), strict=True)
        ]
        (row,) = verdicts_of(case, calls, DIMENSIONS, ("accuracy",))
        assert row.protocol == "robust"
        return row.outcome, row.scores

    assert preferred("B", "A", "A") == (1, (0.5, 1.0, 0.0))
    assert preferred("A", "B", "A") == ("tie", (0.5, 0.5, 0.5))
    assert preferred("tie", "B", "B") == (2, (0.25, 0.25, 1.0))
    assert preferred("", "", "B") == (2, (0.0, 0.0, 0.5))
    assert preferred("", "", "") == ("unread", None)
    shown = [Call("reversed", text=verdict("A"), pair=pair) for pair in ((0, 1), (0, 2), (1, 2))]
    (row,) = verdicts_of(case, shown, DIMENSIONS, ("accuracy",))
    assert (row.outcome, row.scores) == (2, (0.0, 0.5, 1.0))  # A is the one shown first


def replies(case: object, order: str, dimension: str | None, vote: int) -> str:
    """Whatever a model may write: half a surrogate pair and a line separator included."""
    number = int(case.case_id[-3:])
    return [verdict("A"), verdict("tie"), "\ud83d \u2028 \x00", '{"accuracy": "B"}'][number % 4]


def test_rows_can_be_made_again_from_the_file(tmp_path: Path) -> None:
    """Re-scoring needs the cases, the responses and the dimensions in report.json, no model."""
    benchmark = make_benchmark(make_cases("ABABAB"))
    evaluate(Writer(replies, DIMENSIONS, votes=2), benchmark, tmp_path, "mock")
    responses = list(read_responses(tmp_path / "responses.jsonl"))
    assert [(one.case_id, one.order, one.vote) for one in responses[:5]] == [
        ("case-000", "forward", 0),
        ("case-000", "forward", 1),
        ("case-000", "reversed", 0),
        ("case-000", "reversed", 1),
        ("case-001", "forward", 0),
    ]
    assert responses[8].text == replies(benchmark.cases[2], "forward", None, 0)
    asked = read_report(tmp_path)["dimensions"]
    again = [
        row
        for case in benchmark.cases
        for row in verdicts_of(
            case, [one for one in responses if one.case_id == case.case_id], asked, ("accuracy",)
        )
    ]
    written = read_verdicts(tmp_path / "verdicts.jsonl")

    def key(row: Verdict) -> tuple[str, ...]:
        return row.case_id, row.dimension, row.protocol, row.order

    assert sorted(again, key=key) == sorted(written, key=key)
    assert len(written) == 6 * 3


def test_broken_responses_are_named(tmp_path: Path) -> None:
    path = tmp_path / "responses.jsonl"
    with pytest.raises(DataError, match="no responses at"):
        list(read_responses(path))
    listed = json.dumps({**asdict(Call("forward")), "probabilities": [1]})
    lines = ["[]", '{"case_id": "x"}', '"text"', "{", listed, "[" * 100_000, "\udcff"]
    wrong = (
        {"text": 5},
        {"vote": "0"},
        {"vote": math.nan},
        {"vote": math.inf},
        {"case_id": None},
        {"pair": [0, 1, 2]},
        {"pair": [-1, 0]},
        {"probabilities": {"accuracy": [0.5, 0.5]}},
        {"probabilities": {"accuracy": [-0.5, 0.5, 1.0]}},
    )
    lines += [json.dumps(asdict(Call("forward")) | change) for change in wrong]
    for line in lines:
        path.write_text(line + "\n", encoding="utf-8", errors="surrogateescape")
        with pytest.raises(DataError, match="line 1, is not a response"):
            list(read_responses(path))


def test_the_official_protocol_alone_needs_six_dimensions_at_once(tmp_path: Path) -> None:
    benchmark = make_benchmark(make_cases("AB"))
    each = Writer(lambda *call: json.dumps({call[2]: "A"}), DIMENSIONS, per_dimension=True)
    with pytest.raises(ConfigError, match="one reply on all of accuracy"):
        evaluate(each, benchmark, tmp_path, "mock", "official")
    report = evaluate(each, benchmark, tmp_path, "mock", "both", overwrite=True)
    assert set(report["protocols"]) == {"robust"}
    assert report["parsing"]["official"] is None
    assert report["parsing"]["strict"]["stages"] == {"json": 24}
    assert not (tmp_path / "official.csv").exists()
    first = next(read_responses(tmp_path / "responses.jsonl"))
    assert (first.dimension, first.order) == ("accuracy", "forward")


def test_how_replies_were_read_is_counted(tmp_path: Path) -> None:
    texts = [
        verdict("A"),
        verdict("Assistant B"),  # suspect
        verdict("B", creativity="tie"),  # voided but readable
        "I'm sorry, I can't help with that.",
        '{"accuracy": "A", ',
    ]

    def write(case: object, order: str, *_: object) -> str | None:
        number = int(case.case_id[-3:])
        return None if number == 5 else texts[number]

    scorer = Writer(write, DIMENSIONS, cut=texts[4])
    report = evaluate(
        scorer, make_benchmark(make_cases("ABABAB")), tmp_path, "m", settings={"prompt": "mine 0"}
    )
    parsing = report["parsing"]
    assert parsing["calls"] == 12
    assert parsing["states"] == {"ok": 10, "bad_image": 2}
    assert parsing["finish_reasons"] == {"stop": 8, "length": 2}
    official = parsing["official"]
    assert official["stages"] == {"none": 2, "json": 1, "regex": 1, "single": 1}
    assert (official["suspect"], official["voided_but_readable"]) == (2, 1)
    assert sum(official["unread"].values()) == 2
    strict = parsing["strict"]
    assert strict["stages"] == {"json": 6, "none": 4}
    assert strict["unread"] == {"cut_off": 2, "no JSON object": 2, "not A, B or tie": 2}
    assert strict["suspect"] == 0
    assert report["unread"] == {
        "bad_image": 1,
        "cut_off": 1,
        "no JSON object": 1,
        "not A, B or tie": 1,
    }
    assert report["protocols"]["official"]["label"] == "official scorer, prompt file mine"
    assert report["verdict_mass"] is None
    assert report["usage"] is None


class Counting(Writer):
    """A judge whose engine counts the tokens of all calls but those about case 0."""

    def respond(self, cases: Sequence[Case]) -> Iterator[Response]:
        for response in super().respond(cases):
            usage = {"prompt_tokens": 1000, "completion_tokens": 30}
            counted = response.case_id != "case-000"
            yield replace(response, usage=usage) if counted else response


def test_tokens_are_recorded_summed_and_shown(tmp_path: Path) -> None:
    scorer = Counting(lambda *_: verdict("A"), DIMENSIONS)
    report = evaluate(scorer, make_benchmark(make_cases("ABAB")), tmp_path, "m")
    assert report["usage"] == {"calls": 6, "prompt_tokens": 6000, "completion_tokens": 180}
    assert rescore(tmp_path) == report
    lines = [json.loads(line) for line in (tmp_path / "responses.jsonl").read_text().splitlines()]
    assert [line.get("usage") for line in lines] == [None] * 2 + [
        {"prompt_tokens": 1000, "completion_tokens": 30}
    ] * 6
    console = Console(file=io.StringIO(), width=100)
    print_report(report, console)
    said = "Tokens: 6,000 of prompts, 180 of replies (6 of 8 calls)."
    assert said in console.file.getvalue()  # type: ignore[attr-defined]
    assert "6,000" in write_page(tmp_path).read_text(encoding="utf-8")
