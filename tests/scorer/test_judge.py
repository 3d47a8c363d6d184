"""What a judge asks, in which order, and what it makes of the replies."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import combinations, count, islice

import pytest
from cases import broken_image, make_case, stored_image
from presentations import by_order
from scorer.cases import mock_judge

from medrm.chat import PROMPTS
from medrm.errors import DataError
from medrm.schema import ORDERS, Case, PairLabel, RankingLabel
from medrm.scorer.engines.base import Completion, Request, Sampling, call_seed
from medrm.scorer.readouts.pair_judge import Judge, pair_of

TWO = ("accuracy", "overall")


class Script:
    """An engine that replies from a function, and remembers what it was asked."""

    name = "script"

    def __init__(self, reply, ahead: int = 1) -> None:
        self.reply = reply
        self.ahead = ahead
        self.asked: list[Request] = []

    @property
    def settings(self) -> dict[str, object]:
        return {}

    def plain(self, text: str) -> str:
        return text

    def complete(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
        remaining = iter(requests)
        while window := list(islice(remaining, self.ahead)):
            self.asked += window
            for request in window:
                reply = self.reply(request)
                yield reply if isinstance(reply, Completion) else Completion(reply, "stop", "ok")


def letters(letter: str, names: Iterable[str] = TWO) -> str:
    return json.dumps(dict.fromkeys(names, letter))


@pytest.mark.parametrize("ahead", [1, 3, 100])
def test_keeps_the_order_of_cases_orders_dimensions_and_votes(ahead: int) -> None:
    engine = Script(lambda request: request.case.case_id, ahead)
    judge = Judge(engine, PROMPTS["json_per_dimension"], TWO, votes=2)
    cases = [make_case(number, sizes=()) for number in range(4)]
    found = by_order(judge, iter(cases))
    assert [(scored.case, scored.order) for scored in found] == [
        (case, order) for case in cases for order in ("forward", "reversed")
    ]
    calls = [(name, vote) for name in TWO for vote in (0, 1)]
    for scored in found:
        assert [(each.dimension, each.vote) for each in scored.responses] == calls
        assert {each.text for each in scored.responses} == {scored.case.case_id}
        assert {each.order for each in scored.responses} == {scored.order}
        assert {each.readout for each in scored.responses} == {"votes"}
    # The calls of a case are adjacent: an engine may share what their prompts begin with.
    assert [request.case.case_id for request in engine.asked] == [
        case.case_id for case in cases for _ in range(8)
    ]


def test_shows_the_second_answer_first_in_reverse_and_one_dimension_at_a_time() -> None:
    engine = Script(lambda request: "?")
    case = Case("one", (stored_image(1), stored_image(2)), "Q?", ("first", "second"))
    by_order(Judge(engine, PROMPTS["json_per_dimension"], TWO), [case])
    for request, order, name in zip(
        engine.asked, ("forward",) * 2 + ("reversed",) * 2, TWO * 2, strict=True
    ):
        pair = ("first", "second") if order == "forward" else ("second", "first")
        assert (request.order, request.dimension, request.dimensions) == (order, name, (name,))
        assert request.messages == PROMPTS["json_per_dimension"].messages("Q?", 2, pair, (name,))


def test_reads_cases_no_further_than_the_engine() -> None:
    taken = []

    def endless() -> Iterator[Case]:
        for number in count():
            taken.append(number)
            yield make_case(number, sizes=())

    found = Judge(Script(lambda _: "?", ahead=6), PROMPTS["json"], TWO).respond(endless())
    assert len(list(islice(found, 20))) == 20
    assert len(taken) <= 13


def test_of_more_than_two_answers_every_two_are_compared() -> None:
    cases = [make_case(number, answers=k, sizes=()) for number, k in enumerate([3, 2, 4])]
    engine = Script(lambda request: letters("A"))
    found = by_order(Judge(engine, PROMPTS["json_per_dimension"], TWO), cases)
    assert [(scored.case, scored.order) for scored in found] == [
        (case, order) for case in cases for order in ORDERS
    ]
    assert len(engine.asked) == 2 * 2 * (3 + 1 + 6)
    for scored, pairs in zip(found[::2], (3, 1, 6), strict=True):
        indices = list(combinations(range(len(scored.case.answers)), 2)) if pairs > 1 else [None]
        assert [r.pair for r in scored.responses] == [one for one in indices for _ in TWO]
        assert {r.case_id for r in scored.responses} == {scored.case.case_id}
    assert engine.asked[len(TWO)].order == "reversed"
    text = json.dumps(engine.asked[len(TWO)].messages)
    assert text.index(cases[0].answers[1]) < text.index(cases[0].answers[0])


def test_pairs_of_a_ranking_are_labelled_by_who_ranked_higher() -> None:
    label = RankingLabel((((2,), (0, 1)), ((0,), (1,), (2,))))
    case = Case("one", (), "Q?", ("a", "b", "c"), {"overall": label})
    assert pair_of(case, (0, 1)).labels["overall"] == PairLabel((0.5, 0.5, 0.0), 2)
    assert pair_of(case, (0, 2)).labels["overall"] == PairLabel((0.5, 0.0, 0.5), 2)
    assert pair_of(case, (1, 2)).answers == ("b", "c")


def test_breaks_up_control_tokens_before_the_prompt() -> None:
    engine = Script(lambda request: "?")
    case = Case("one", (), "Q <end>", ("<end> a", "b"))
    engine.plain = lambda text: text.replace("<end>", "< end>")  # type: ignore[method-assign]
    judge = Judge(engine, PROMPTS["json"], TWO)
    by_order(judge, [case])
    text = json.dumps(engine.asked[0].messages)
    assert "<end>" not in text
    assert text.count("< end>") == 2


def test_a_failed_call_keeps_its_state() -> None:
    failed = Completion(None, None, "error", "HTTP 503", "digest")
    (scored, _) = by_order(Judge(Script(lambda _: failed), PROMPTS["json"], TWO), [make_case(0)])
    (response,) = scored.responses
    assert (response.state, response.reason, response.prompt_digest) == (
        "error",
        "HTTP 503",
        "digest",
    )


def test_compare_prefers_what_both_orders_prefer() -> None:
    judge = mock_judge("longer", TWO)
    verdicts = judge.compare([stored_image(1)], "Q?", ["short", "much longer"])
    assert {name: verdict.outcome for name, verdict in verdicts.items()} == dict.fromkeys(TWO, "B")
    assert {verdict.probability_a for verdict in verdicts.values()} == {None}
    disagreeing = mock_judge("first-slot", TWO).compare([], "Q?", ["a", "b"])
    assert {(each.outcome, each.reason) for each in disagreeing.values()} == {
        ("unread", "orders_disagree")
    }
    refused = mock_judge("refuse", TWO).compare([], "Q?", ["a", "b"])
    assert all(each.outcome == "unread" and each.reason for each in refused.values())


def test_compare_takes_the_majority_of_the_votes_that_are_read() -> None:
    def compare(*replies: str) -> tuple[object, str | None]:
        judge = Judge(
            Script(lambda request: replies[request.vote]),
            PROMPTS["json"],
            ("overall",),
            votes=len(replies),
        )
        verdict = judge.compare([], "Q?", ["a", "b"])["overall"]
        return verdict.outcome, verdict.reason

    tie, first, second = (letters(letter, ["overall"]) for letter in ("tie", "A", "B"))
    assert compare(tie, tie, first) == ("tie", None)
    assert compare(first, "no verdict", first) == ("unread", "orders_disagree")
    assert compare(first, second, "no verdict") == ("unread", "votes_split")
    assert compare(tie, "no verdict", "no verdict") == ("tie", None)


def test_compare_refuses_what_it_cannot_judge() -> None:
    judge = mock_judge("oracle", TWO)
    with pytest.raises(DataError, match="3 answers"):
        judge.compare([], "Q?", ["a", "b", "c"])
    with pytest.raises(DataError, match="broken"):
        judge.compare([broken_image()], "Q?", ["a", "b"])


def test_settings_name_all_that_could_change_a_response() -> None:
    def settings(prompt: str = "json", votes: int = 1, **sampling: float) -> object:
        engine = Script(lambda _: "?")
        changed = replace(Sampling(), **sampling)  # type: ignore[arg-type]
        return Judge(engine, PROMPTS[prompt], TWO, votes=votes, sampling=changed).settings

    plain = settings()
    for other in (
        settings("rationale_json"),
        settings(votes=3),
        settings(temperature=0.5),
        settings(max_new_tokens=9),
        settings(seed=1),
    ):
        assert other != plain
    assert json.loads(json.dumps(plain)) == plain


def test_the_seed_of_a_call_is_its_own_and_nothing_elses() -> None:
    engine = Script(lambda request: "?")
    cases = [make_case(number, sizes=()) for number in range(3)]
    by_order(Judge(engine, PROMPTS["json_per_dimension"], TWO, votes=3), cases)
    seeds = [call_seed(request, Sampling()) for request in engine.asked]
    assert len(set(seeds)) == len(seeds) == 36
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert call_seed(engine.asked[0], Sampling(seed=1)) != seeds[0]
    assert call_seed(replace(engine.asked[7]), Sampling(temperature=1.0)) == seeds[7]
