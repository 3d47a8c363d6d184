"""Votes that say more than which answer is better."""

from __future__ import annotations

import random
from operator import itemgetter

import numpy as np
import pytest
from files import three, vote
from scipy import stats
from scipy.special import digamma

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
from medrm.objectives.judge.judge_examples import learned_answer
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
        # The strength of a vote is not how many votes it is: half of them are no majority.
        (
            ["slightly_a", "neither"],
            LabelRules(strength="weight"),
            PairLabel((1.0, 0.0, 0.0), 1, 0.5),
        ),
        (
            ["neither", "neither", "neither", "A"],
            LabelRules(weights={"a0": 0.1, "a1": 0.1, "a2": 0.1, "a3": 0.3}),
            PairLabel((1.0, 0.0, 0.0), 1, 0.5),
        ),
        (
            ["neither", "strongly_a", "neither", "strongly_a", "neither"],
            LabelRules(strength="weight"),
            PairLabel((1.0, 0.0, 0.0), 2, 0.6),
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


def test_half_of_the_weight_is_no_majority(votes_file):
    """0.1 + 0.1 + 0.1 is more than 0.3 in binary."""
    weights = {"a0": 0.1, "a1": 0.1, "a2": 0.1, "a3": 0.3}
    (case,) = read_set(
        str(votes_file(*three("A", "A", "A", "B"))), LabelRules(weights=weights)
    ).cases
    assert case.labels["overall"] == PairLabel((0.5, 0.0, 0.5), 4)
    assert case.labels["overall"].choice is None
    assert learned_answer(case, "overall", "plurality") is None


def test_each_reader_is_held_against_the_others(votes_file):
    """Of A, A, B the first two have no majority among the others, the third has A and misses it.

    Of A, A, A, tie, neither each of the first three is held against A, A, tie (two thirds,
    `neither` left out) and right; the tie and `neither` are held against A as well, and miss it.
    """
    labels = [
        read_cases(votes_file(*three(*choices)))[0].labels["overall"].readers
        for choices in (
            ["A", "A", "B"],
            ["A", "A", "A", "tie", "neither"],
            ["B", "B"],
            ["A"],
            ["A", "A", "neither", "neither", "neither"],  # accepted by few: nobody is held
        )
    ]
    assert labels == [(1, 0, 0, 0), (5, 3, 0, 0), (0, 0, 2, 2), None, (0, 0, 0, 0)]
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
    assert "1 vote took less than 10 s and is dropped (a1 1)" in caplog.text
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


def mace_by_hand(rows, workers, labels):
    """Hovy et al. (NAACL 2013) by variational Bayes as in their code, in plain loops.

    Rows are of case, annotator and value. An annotator knows the value of a case, or spams by a
    strategy of its own.
    """
    noise = stats.uniform(1, 1.5)
    sizes = ((len(workers), 2), (len(workers), len(labels)))
    spams, strategy = (noise.rvs(size=size, random_state=0) for size in sizes)
    spams, strategy = (x / x.sum(axis=1, keepdims=True) for x in (spams, strategy))
    for _ in range(51):
        posterior = {case: np.ones(len(labels)) for case, _, _ in rows}
        for case, worker, label in rows:
            w, k = workers.index(worker), labels.index(label)
            known = spams[w, 1] * (np.arange(len(labels)) == k)
            posterior[case] *= spams[w, 0] * strategy[w, k] + known
        posterior = {case: joint / joint.sum() for case, joint in posterior.items()}
        counts, spammed = (np.zeros_like(x) for x in (spams, strategy))
        for case, worker, label in rows:
            w, k = workers.index(worker), labels.index(label)
            by_strategy = spams[w, 0] * strategy[w, k]
            known = spams[w, 1] * (np.arange(len(labels)) == k)
            share = (posterior[case] * by_strategy / (by_strategy + known)).sum()
            counts[w] += share, 1 - share
            spammed[w, k] += share
        spams, strategy = (
            np.exp(digamma(x) - digamma(x.sum(axis=1, keepdims=True)))
            for x in (counts + 0.5, spammed + 10)
        )
    return posterior


@pytest.mark.filterwarnings("ignore::DeprecationWarning:crowdkit")
def test_mace_is_that_of_its_paper_whatever_the_order(votes_file):
    """Names and values first occur in no sorted order; zoe is careful, eve says B of everything.

    All votes on the last case are `neither`, of which nothing is learned whatever a model says.
    """
    draws = random.Random(1)
    careful = {"zoe": 0.9, "bob": 0.8, "ann": 0.6}
    rows = []
    for number in range(15):
        truth = draws.choice(["B", "B", "tie", "A"])
        for name in ("zoe", "bob", "eve", "ann"):
            value = truth if draws.random() < careful.get(name, 0) else draws.choice("AB")
            rows.append((f"c{number}", name, "B" if name == "eve" else value))
    rows += [("last", "eve", "neither"), ("last", "zoe", "neither")]

    def read_in(order):
        lines = [vote(case, name, votes={"overall": value}) for case, name, value in order]
        cases = read_set(str(votes_file(*lines)), LabelRules(aggregation="mace")).cases
        return {case.case_id: case for case in cases}

    cases = read_in(rows)
    shuffled = read_in(draws.sample(rows, len(rows)))
    assert {key: case.labels for key, case in cases.items()} == {
        key: shuffled[key].labels for key in cases
    }
    assert cases["last"].labels["overall"] == PairLabel((0.0, 0.0, 0.0), 0, 1.0)
    assert learned_answer(cases.pop("last"), "overall", "sampled") is None
    in_order = sorted(rows, key=itemgetter(1, 2))
    names, values = (list(dict.fromkeys(row[column] for row in in_order)) for column in (1, 2))
    expected = mace_by_hand(rows, names, values)
    for case_id, case in cases.items():
        posterior = dict(zip(values, expected[case_id], strict=True))
        accepted = np.array([posterior[value] for value in ("A", "tie", "B")])
        label = case.labels["overall"]
        assert label.shares == pytest.approx(accepted / accepted.sum())
        assert label.neither == pytest.approx(posterior["neither"])


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
