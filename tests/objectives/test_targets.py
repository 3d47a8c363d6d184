"""Labels to targets: shares, majority, smoothing, margins, weights, missing labels, rankings."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from medrm.errors import ConfigError, DataError
from medrm.objectives.targets import LabelGroup, Targets, tally, tie_shares
from medrm.schema import Case, Label, PairLabel, RankingLabel

PLAIN = Targets(("accuracy", "overall"), (1.0, 1.0), "none", (False, False))


def case(answers: int = 2, **labels: Label) -> Case:
    return Case("c", (), "?", tuple("abcdefghi"[:answers]), labels)


def only(targets: Targets, *cases: Case) -> LabelGroup:
    (group,) = targets.groups(cases, [1.0] * len(cases))
    return group


MIXED = PairLabel((0.5, 0.125, 0.375), votes=8)
CLEAR = PairLabel((0.0, 0.25, 0.75), votes=4)


def test_shares_are_kept_and_a_missing_label_weighs_nothing() -> None:
    group = only(PLAIN, case(accuracy=MIXED), case(accuracy=CLEAR, overall=CLEAR))
    assert group.vote_shares is not None
    assert group.vote_shares[0, 0].tolist() == [0.5, 0.125, 0.375]
    assert group.weights.tolist() == [[1, 0], [1, 1]]
    assert group.preferred[..., 0].tolist() == [[0, 0], [-1, -1]]
    assert group.rows.tolist() == [[0, 1], [2, 3]]


def test_majority_is_one_choice_or_no_label() -> None:
    group = only(replace(PLAIN, vote_targets="majority"), case(accuracy=MIXED, overall=CLEAR))
    assert group.vote_shares is not None
    assert group.vote_shares[0, 1].tolist() == [0, 0, 1]
    assert group.weights.tolist() == [[0, 1]]
    tie = only(replace(PLAIN, vote_targets="majority"), case(accuracy=PairLabel((0.0, 1.0, 0.0))))
    assert tie.vote_shares is not None
    assert tie.vote_shares[0, 0].tolist() == [0, 1, 0]


def test_smoothing_moves_votes_to_the_other_answer_and_leaves_ties() -> None:
    group = only(replace(PLAIN, label_smoothing=0.1), case(accuracy=CLEAR))
    assert group.vote_shares is not None
    assert group.vote_shares[0, 0].tolist() == pytest.approx([0.075, 0.25, 0.675])


def test_margins_follow_the_lead_of_the_votes() -> None:
    targets = replace(PLAIN, vote_targets="majority", margin=2.0)
    tie = PairLabel((0.25, 0.75, 0.0))
    group = only(targets, case(accuracy=CLEAR, overall=tie))
    assert group.margins is not None
    assert group.margins.tolist() == [[1.5, 0.0]]


def test_nothing_is_learned_where_no_answer_is_acceptable_and_slight_votes_ask_for_less() -> None:
    unacceptable, slight = PairLabel((1.0, 0.0, 0.0), 1, 0.6), PairLabel((0.75, 0.0, 0.25))
    group = only(replace(PLAIN, margin=2.0), case(accuracy=unacceptable, overall=slight))
    assert group.weights.tolist() == [[0, 1]]
    assert group.preferred[..., 0].tolist() == [[0, 1]]
    assert group.margins is not None
    assert group.margins.tolist() == [[0.0, 1.0]]
    assert tie_shares([case(accuracy=unacceptable)], ["accuracy"]) == {"accuracy": 0.0}


def test_weights_by_dimension_votes_and_scale() -> None:
    targets = replace(PLAIN, dimension_weights=(2.0, 1.0), weight_by_votes=True)
    both = case(accuracy=MIXED, overall=CLEAR)
    assert targets.weights_of([both]).tolist() == [[16, 4]]
    (group,) = targets.groups([both], [0.5])
    assert group.weights.tolist() == [[8, 2]]


def test_answers_of_mixed_numbers_keep_their_rows() -> None:
    ranked = RankingLabel((((0,), (1, 2)), ((0,), (1,), (2,)), ((2,), (0,), (1,))))
    cases = [case(accuracy=CLEAR), case(3, accuracy=ranked), case(accuracy=CLEAR)]
    pairs, triples = PLAIN.groups(cases, [1.0] * 3)
    assert pairs.rows.tolist() == [[0, 1], [5, 6]]
    assert triples.rows.tolist() == [[2, 3, 4]]
    # Two of three votes put 0 over 1 and over 2; only one of them puts 1 over 2.
    assert triples.preferred[0, 0].tolist() == [1, 1, 0]
    rewards = torch.tensor([[0.0], [1.0], [3.0], [5.0], [1.0], [0.0], [0.0]]).expand(-1, 2)
    assert tally(triples, rewards)[:, 0].tolist() == [0.5, 0.0, 1.0]
    # The first pair is right by 1; equal rewards are wrong.
    assert tally(pairs, rewards)[:, 0].tolist() == [1.0, 1.0, 2.0]
    assert tally(pairs, rewards)[:, 1].tolist() == [0.0, 0.0, 0.0]


def test_tie_shares_count_votes_and_places() -> None:
    ranked = RankingLabel((((0, 1, 2),), ((0,), (1, 2))))
    shares = tie_shares([case(accuracy=MIXED), case(accuracy=CLEAR)], ("accuracy", "overall"))
    assert shares == {"accuracy": pytest.approx(2 / 12), "overall": 0.0}
    assert tie_shares([case(3, accuracy=ranked)], ("accuracy",))["accuracy"] == pytest.approx(4 / 6)


def test_labels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="two answers take vote shares"):
        PLAIN.check([case(3, accuracy=CLEAR)])
    ranked = case(3, accuracy=RankingLabel((((0,), (1,), (2,)),)))
    with pytest.raises(ConfigError, match="margin"):
        replace(PLAIN, margin=1.0).check([case(accuracy=CLEAR), ranked])
    PLAIN.check([case(accuracy=CLEAR), ranked])
    with pytest.raises(DataError, match="more than 8 answers"):
        PLAIN.check([case(9)])
