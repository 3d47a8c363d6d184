"""Mock judges give their known answers, in text that both parsers read."""

from __future__ import annotations

import hashlib

import pytest
from presentations import by_order
from scorer.cases import mock_judge

from medrm.errors import ConfigError
from medrm.parsers import parse_verdict
from medrm.schema import DIMENSIONS, Case, PairLabel
from medrm.scorer.mock_judges import MOCKS, REFUSAL, MockEngine
from medrm.scorer.verdict_rules import verdicts_of

LABELS = {
    "accuracy": PairLabel((0.0, 0.0, 1.0), 3),
    "relevance": PairLabel((1.0, 0.0, 0.0), 3),
    "overall": PairLabel((0.0, 1.0, 0.0), 3),
}
CASES = [
    Case(
        f"case-{number}", (), "What?", ("long answer", "short")[:: 1 if number % 2 else -1], LABELS
    )
    for number in range(200)
]


CHOICES = {"A": 0, "B": 1, "tie": "tie", "unread": None}


def stored(name: str, cases: list[Case] = CASES) -> dict[str, dict[str, list[int | str | None]]]:
    """Case to dimension to the choice in each order, in the stored frame."""
    choices: dict[str, dict[str, list[int | str | None]]] = {}
    for scored in by_order(mock_judge(name, DIMENSIONS), cases):
        for verdict in verdicts_of(
            scored.case, scored.responses, DIMENSIONS, DIMENSIONS, ("robust",)
        ):
            by_dimension = choices.setdefault(verdict.case_id, {})
            by_dimension.setdefault(verdict.dimension, []).append(CHOICES[verdict.outcome])
    return choices


def test_always_a_names_the_first_stored_answer_in_both_orders() -> None:
    assert all(
        found == [0, 0]
        for by_dimension in stored("always-a").values()
        for found in by_dimension.values()
    )


def test_first_slot_names_whichever_is_shown_first() -> None:
    assert all(
        found == [0, 1]
        for by_dimension in stored("first-slot").values()
        for found in by_dimension.values()
    )


def test_longer_names_the_longer_and_of_equal_ones_the_first() -> None:
    choices = stored("longer", [*CASES, Case("equal", (), "What?", ("same", "also"))])
    for number in range(200):
        assert choices[f"case-{number}"]["overall"] == ([0, 0] if number % 2 else [1, 1])
    assert choices["equal"]["overall"] == [0, 0]


def test_random_is_balanced_and_does_not_depend_on_the_company() -> None:
    choices = stored("random")
    flat = [found["overall"] for found in choices.values()]
    assert 70 < sum(first == 0 for first, _ in flat) < 130
    assert 70 < sum(first == second for first, second in flat) < 130
    assert stored("random", CASES[::-7]) == {
        case.case_id: choices[case.case_id] for case in CASES[::-7]
    }


def test_oracle_says_the_labels_and_of_ties_the_first_stored() -> None:
    for found in stored("oracle").values():
        assert found["accuracy"] == [1, 1]
        assert found["relevance"] == found["overall"] == found["creativity"] == [0, 0]


@pytest.mark.parametrize("parser", ["official", "strict"])
def test_one_case_in_ten_of_the_malformed_oracle_is_read_by_no_parser(parser: str) -> None:
    unread = set()
    for scored in by_order(mock_judge("oracle-malformed-10", DIMENSIONS), CASES):
        (response,) = scored.responses
        parsed = parse_verdict(response.text or "", parser)  # type: ignore[arg-type]
        if set(parsed.outcomes.values()) == {None}:
            unread.add((scored.case.case_id, scored.order))
        else:
            assert None not in parsed.outcomes.values()
    expected = {
        case.case_id
        for case in CASES
        if int.from_bytes(hashlib.sha256(case.case_id.encode()).digest(), "big") % 10 == 0
    }
    assert expected
    assert unread == {(name, order) for name in expected for order in ("forward", "reversed")}


@pytest.mark.parametrize("parser", ["official", "strict"])
def test_a_refusal_is_read_by_no_parser(parser: str) -> None:
    assert REFUSAL == "I'm sorry, I can't help with that."
    for scored in by_order(mock_judge("refuse", DIMENSIONS), CASES[:3]):
        (response,) = scored.responses
        assert (response.text, response.state, response.finish_reason) == (REFUSAL, "ok", "stop")
        outcomes = parse_verdict(REFUSAL, parser).outcomes  # type: ignore[arg-type]
        assert set(outcomes.values()) == {None}


@pytest.mark.parametrize("name", sorted(set(MOCKS) - {"refuse", "oracle-malformed-10"}))
def test_both_parsers_read_the_same_in_a_reply(name: str) -> None:
    for scored in by_order(mock_judge(name, DIMENSIONS), CASES[:20]):
        text = scored.responses[0].text or ""
        assert parse_verdict(text, "official").outcomes == parse_verdict(text, "strict").outcomes


def test_an_unknown_name_is_refused_with_the_nearest_and_all() -> None:
    with pytest.raises(ConfigError, match=r"always-a.*refuse.*Did you mean 'oracle'") as raised:
        MockEngine("orakle")
    assert all(f"mock:{name}" in str(raised.value) for name in MOCKS)
