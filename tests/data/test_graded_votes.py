"""Votes that say more than which answer is better."""

from __future__ import annotations

import pytest
from files import three, vote

from medrm import read_cases
from medrm.data.case_set import read_set
from medrm.data.images import examine
from medrm.data.labels import LabelRules
from medrm.data.readers.vote_values import vote_value
from medrm.data.readers.votes_jsonl import read_votes
from medrm.data.row_tables import open_table
from medrm.data.sources import Excluded, Remark, Vote
from medrm.data.store.vote_records import votes_on
from medrm.errors import ConfigError, DataError
from medrm.pipeline.prepare_data import UNACCEPTABLE, check_excluded, set_aside_unusable
from medrm.schema import PairLabel, Turn


def test_a_line_keeps_all_that_it_says(votes_file):
    """Times, confidence and reasons belong to votes, comments and further columns to the line."""
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which organ?"}]},
        {"role": "assistant", "content": "The liver."},
    ]
    first = {"accuracy": "slightly_b", "overall": "neither", "relevance": None}
    rows = [
        vote(
            "c1", "a1", votes=first, seconds=12.5, context=turns, comment="blurred", extra={"n": 1}
        ),
        vote(
            "c1", "a2", votes={"accuracy": "strongly_a"}, context=turns,
            confidence={"accuracy": "high"}, reason={"accuracy": "Names the lesion."},
        ),
    ]  # fmt: skip
    path = votes_file(*rows)
    (draft,) = read_votes(open_table(path), path).drafts
    assert draft.votes == {
        "accuracy": [
            Vote("a1", 1, "slightly", 12.5),
            Vote("a2", 0, "strongly", None, "high", "Names the lesion."),
        ],
        "overall": [Vote("a1", "neither", None, 12.5)],
    }
    assert draft.remarks == [Remark("a1", "blurred", {"n": 1})]
    assert draft.context == (
        Turn("system", "Be brief."),
        Turn("user", "Which organ?", 1),
        Turn("assistant", "The liver."),
    )
    written = [vote_value(cast) for cast in draft.votes["accuracy"]]
    assert written == ["slightly_b", "strongly_a"]
    (case,) = read_cases(path)
    assert case.labels["accuracy"] == PairLabel((1.25 / 2, 0.0, 0.75 / 2), 2)
    assert case.labels["overall"] == PairLabel((0.0, 0.0, 0.0), 0, 1.0)
    assert case.context == draft.context


def test_what_a_line_says_wrongly_is_said_in_words(votes_file):
    path = votes_file(
        vote("c1", seconds=-1),
        vote("c2", seconds=float("nan")),
        vote("c2b", seconds=10**400, confidence=-(10**30)),
        vote("c3", seconds=True, reason=["x"], extra="x", comment=3),
        vote("c4", confidence={"overall": "high"}),
        vote("c5", votes={"accuracy": "strongly_A"}),
        vote("c6", context="Hello"),
        vote("c7", context=[{"role": "user", "content": "Hello"}]),
        vote("c8", context=[{"role": "system", "content": [{"image": "images/1.png"}]}]),
        vote("c9", context=[{"role": "system", "content": "<image><image>"}]),
        vote("c10", "a1"),
        vote("c10", "a2", context=[{"role": "system", "content": "Be brief."}]),
        vote("c11", votes={"overall": "neither"}, answers=list("xyz"), answer_a=..., answer_b=...),
    )  # fmt: skip
    with pytest.raises(DataError) as raised:
        read_cases(path)
    message = str(raised.value)
    for part in (
        "line 1 (case 'c1'): 'seconds' is -1; give a number of 0 or more",
        "line 2 (case 'c2'): 'seconds' is nan",
        "line 3 (case 'c2b'): 'seconds' is 10000",
        "'confidence' is -1000000000000000000000000000000; give text or a number",
        "'comment' is 3; give text",
        "'extra' is 'x'; give an object",
        "'confidence' names 'overall', which 'votes' does not name",
        "'strongly_A'; accepted are 'A', 'B', 'tie' or null; also 'neither', 'strongly_a'",
        "'context' is 'Hello'; give a list of messages",
        "its turns do not alternate",
        "'context' holds the image 'images/1.png'; name it in 'images'",
        "it refers to 2 images, the case has 1",
        "line 12: case 'c10' has other context than on line 11",
        "accepted is a ranking",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("choices", "rules", "expected"),
    [
        (["slightly_a"], LabelRules(), PairLabel((0.75, 0.0, 0.25), 1)),
        (["strongly_a", "slightly_b"], LabelRules(), PairLabel((0.625, 0.0, 0.375), 2)),
        (["slightly_a", "tie"], LabelRules(ties="split"), PairLabel((0.625, 0.0, 0.375), 2)),
        (["slightly_a"], LabelRules(strength="ignore"), PairLabel((1.0, 0.0, 0.0), 1)),
        (["slightly_a"], LabelRules(strength="weight"), PairLabel((1.0, 0.0, 0.0), 1)),
        (
            ["strongly_a", "slightly_b"],
            LabelRules(strength="weight"),
            PairLabel((0.75, 0.0, 0.25), 2),
        ),
        (["A", "neither", "B", "A"], LabelRules(), PairLabel((2 / 3, 0.0, 1 / 3), 3, 0.25)),
        (["tie", "neither"], LabelRules(ties="drop"), PairLabel((0.0, 0.0, 0.0), 0, 1.0)),
        (
            ["A", "neither"],
            LabelRules(weights={"a0": 1.0, "a1": 3.0}),
            PairLabel((1.0, 0.0, 0.0), 1, 0.75),
        ),
    ],
)  # fmt: skip
def test_strength_and_neither_enter_the_label(votes_file, choices, rules, expected):
    (case,) = read_set(str(votes_file(*three(*choices))), rules).cases
    label = case.labels["overall"]
    assert label.shares == pytest.approx(expected.shares)
    assert (label.votes, label.neither) == (expected.votes, expected.neither)
    assert label.unacceptable == (expected.neither > 0.5)
    assert (label.choice is None) == label.unacceptable


def test_each_reader_is_held_against_the_others(votes_file):
    """Of A, A, B the first two have no majority among the others, the third has A and misses it.

    Of A, A, A, tie, neither each of the first three is held against A, A, tie (two thirds,
    `neither` left out) and right; the tie and `neither` are held against A as well, and miss it.
    """
    labels = [
        read_cases(votes_file(*three(*choices)))[0].labels["overall"].readers
        for choices in (["A", "A", "B"], ["A", "A", "A", "tie", "neither"], ["B", "B"], ["A"])
    ]
    assert labels == [(1, 0, 0, 0), (5, 3, 0, 0), (0, 0, 2, 2), None]
    weights = {"a0": 0.1, "a1": 0.2, "a2": 0.3}  # against a2: 0.1 A and 0.2 B
    (case,) = read_set(str(votes_file(*three("A", "B", "A"))), LabelRules(weights=weights)).cases
    assert case.labels["overall"].readers == (2, 1, 1, 0)


def test_fast_votes_are_dropped_counted_and_named(votes_file, caplog):
    rows = three("A", "B", "B")
    rows[1]["seconds"], rows[2]["seconds"] = 2.5, 10
    path = str(votes_file(*rows))
    read = read_set(path, LabelRules(min_seconds=10))
    assert read.cases[0].labels["overall"] == PairLabel((0.5, 0.0, 0.5), 2)
    assert read.fast_votes.by_annotator == {"a1": 1}
    assert read.fast_votes.examples == ["case 'c1', overall: 'a1' took 2.5 s"]
    assert "1 votes took less than 10 s and are dropped (a1 1)" in caplog.text
    assert [vote.annotator for vote in next(votes_on(read.cases))[1]["overall"]] == ["a0", "a2"]
    with pytest.raises(ConfigError, match="no vote says how long it took"):
        read_set(str(votes_file(*three("A"))), LabelRules(min_seconds=10))
    with pytest.raises(ConfigError, match="min_vote_seconds is -1"):
        LabelRules(min_seconds=-1)


def test_the_index_keeps_the_votes_of_some_of_its_cases(votes_file):
    more = {"answer_a": ..., "answer_b": ..., "answers": ["x", "y", "z"]}
    path = votes_file(
        vote("c1", votes={"overall": None}),
        vote("c2", votes={"overall": "slightly_b", "mine": "neither"}, confidence=3, seconds=1),
        vote("c3", "a2", **more, votes={"overall": [2, [0, 1]]}, reason="why"),
        vote("c2", "a2", votes={"overall": "tie"}),
    )
    cases = read_set(str(path)).cases
    assert list(votes_on(cases)) == [
        (
            1,
            {
                "overall": [Vote("a1", 1, "slightly", 1.0, "3"), Vote("a2", "tie")],
                "mine": [Vote("a1", "neither", None, 1.0, "3")],
            },
        ),
        (2, {"overall": [Vote("a2", ((2,), (0, 1)), reason="why")]}),
    ]
    assert [index for index, _ in votes_on(cases[2:])] == [0]
    assert list(votes_on(list(cases))) == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning:crowdkit")
def test_models_of_annotators_keep_strength_and_neither(votes_file):
    values = [("slightly_a", "slightly_a", "B"), ("neither", "neither", "A"), ("B", "B", "B")] * 4
    path = str(
        votes_file(
            *(
                vote(f"c{i}", f"a{a}", votes={"overall": value})
                for i, row in enumerate(values)
                for a, value in enumerate(row)
            )
        )
    )
    for aggregation in ("dawid_skene", "mace"):
        slight, neither, second, *_ = [
            case.labels["overall"]
            for case in read_set(path, LabelRules(aggregation=aggregation)).cases
        ]
        assert slight.shares == pytest.approx((0.75, 0, 0.25), abs=0.1)
        assert neither.unacceptable
        assert second.choice == 1


def test_cases_without_an_acceptable_answer_are_set_aside_and_stop_no_run(votes_file, caplog):
    rows = [vote(f"c{i}", votes={"overall": "neither" if i % 2 else "A"}) for i in range(4)]
    cases = read_set(str(votes_file(*rows))).cases
    usable, excluded = set_aside_unusable(cases, ("overall",), examine(cases))
    assert [case.case_id for case in usable] == ["c0", "c2"]
    assert {aside.reason for aside in excluded} == {UNACCEPTABLE}
    check_excluded(excluded, len(usable), 0.01)
    assert "2 of 4 training cases (50.0%) cannot be used" in caplog.text
    with pytest.raises(DataError, match="above max_excluded_share"):
        check_excluded([*excluded, Excluded("c9", "no label")], len(usable), 0.01)
