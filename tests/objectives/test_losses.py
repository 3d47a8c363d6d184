"""Each loss against hand arithmetic, finite differences and the invariances of its formula."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from medrm.errors import DataError
from medrm.objectives import losses
from medrm.schema import Ranking

T = torch.tensor([0.3], dtype=torch.float64)


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def pair(first: float, second: float) -> Tensor:
    return double(first, second).reshape(1, 2, 1)


def shares(*values: float) -> Tensor:
    return double(*values).reshape(1, 1, 3)


def test_bradley_terry_by_hand() -> None:
    # d = log 3: the first answer is preferred with probability 3/4.
    d = double(math.log(3)).reshape(1, 1)
    assert losses.bradley_terry(d, shares(1, 0, 0)).item() == pytest.approx(-math.log(0.75))
    assert losses.bradley_terry(d, shares(0, 0, 1)).item() == pytest.approx(-math.log(0.25))
    mixed = losses.bradley_terry(d, shares(0.5, 0.25, 0.25)).item()
    assert mixed == pytest.approx(-0.625 * math.log(0.75) - 0.375 * math.log(0.25))


def test_margin_by_hand() -> None:
    # d = log 3 less m = log 3 leaves even odds; the worse answer is held back as much.
    d, m = double(math.log(3)).reshape(1, 1), double(math.log(3)).reshape(1, 1)
    assert losses.bradley_terry(d, shares(1, 0, 0), m).item() == pytest.approx(math.log(2))
    assert losses.bradley_terry(d, shares(0, 0, 1), m).item() == pytest.approx(-math.log(0.1))


def test_davidson_by_hand() -> None:
    # worth 4 and 1, nu = 1/2: weights 4, (1/2) sqrt(4) = 1, 1 -> 4/6, 1/6, 1/6.
    d, t = double(math.log(4)).reshape(1, 1), double(math.log(0.5))
    for share, p in (((1, 0, 0), 4 / 6), ((0, 1, 0), 1 / 6), ((0, 0, 1), 1 / 6)):
        assert losses.davidson(d, shares(*share), t).item() == pytest.approx(-math.log(p))


def test_rao_kupper_by_hand() -> None:
    # worth 4 and 1, theta = 2: 4/(4+2), 1/(1+8) and the rest, 1 - 2/3 - 1/9 = 2/9.
    d = double(math.log(4)).reshape(1, 1)
    t = double(math.log(math.expm1(math.log(2))))
    for share, p in (((1, 0, 0), 2 / 3), ((0, 1, 0), 2 / 9), ((0, 0, 1), 1 / 9)):
        assert losses.rao_kupper(d, shares(*share), t).item() == pytest.approx(-math.log(p))


@pytest.mark.parametrize("model", [losses.davidson, losses.rao_kupper])
def test_tie_models_sum_to_one_and_start_at_the_share(model: object) -> None:
    for d in (-3.0, 0.0, 0.7, 20.0):
        p = [
            math.exp(-model(double(d).reshape(1, 1), shares(*row), T).item())  # type: ignore[operator]
            for row in torch.eye(3).tolist()
        ]
        assert sum(p) == pytest.approx(1)
    t = double(losses.initial_tie(0.12))
    even = model(double(0.0).reshape(1, 1), shares(0, 1, 0), t)  # type: ignore[operator]
    assert even.item() == pytest.approx(-math.log(0.12))


def test_davidson_without_a_tie_is_bradley_terry() -> None:
    # p_first / (p_first + p_second) = s(d) whatever nu.
    d = double(0.9).reshape(1, 1)
    first = math.exp(-losses.davidson(d, shares(1, 0, 0), T).item())
    second = math.exp(-losses.davidson(d, shares(0, 0, 1), T).item())
    assert first / (first + second) == pytest.approx(torch.sigmoid(d).item())


TIES = ("none", "davidson", "rao_kupper")


@pytest.mark.parametrize("ties", TIES)
def test_swapping_answers_and_shares_changes_nothing(ties: str) -> None:
    s = shares(0.6, 0.3, 0.1)
    forward = losses.pair_loss(pair(0.4, -1.1), s, ties, T)
    assert losses.pair_loss(pair(-1.1, 0.4), s.flip(-1), ties, T).item() == pytest.approx(
        forward.item()
    )


@pytest.mark.parametrize("ties", TIES)
def test_a_shift_of_all_rewards_changes_nothing(ties: str) -> None:
    s = shares(0.6, 0.3, 0.1)
    forward = losses.pair_loss(pair(0.4, -1.1), s, ties, T)
    assert losses.pair_loss(pair(7.4, 5.9), s, ties, T).item() == pytest.approx(forward.item())


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("has", [True, False])
def test_gradients_agree_with_finite_differences(ties: str, has: bool) -> None:
    s = torch.tensor([[[0.6, 0.3, 0.1]], [[0.0, 1.0, 0.0]]], dtype=torch.float64)
    r = torch.tensor([[[0.4], [-1.1]], [[0.2], [0.3]]], dtype=torch.float64, requires_grad=True)
    t = T.clone().requires_grad_()
    no_tie = torch.tensor([not has])
    assert torch.autograd.gradcheck(
        lambda r, t: losses.pair_loss(r, s, ties, t.masked_fill(no_tie, -torch.inf)), (r, t)
    )


@pytest.mark.parametrize("ties", ["davidson", "rao_kupper"])
def test_a_dimension_without_ties_takes_bradley_terry_exactly(ties: str) -> None:
    s, no_tie = shares(1, 0, 0), double(-torch.inf)
    plain = losses.pair_loss(pair(0.4, -1.1), s, "none", None)
    assert torch.equal(losses.pair_loss(pair(0.4, -1.1), s, ties, no_tie), plain)


@pytest.mark.parametrize("ties", TIES)
def test_extreme_rewards_stay_finite(ties: str) -> None:
    r = torch.tensor([[[300.0], [-300.0]]], requires_grad=True)
    t = torch.tensor([-40.0], requires_grad=True)
    loss = losses.pair_loss(r, torch.tensor([[[0.2, 0.3, 0.5]]]), ties, t).sum()
    loss.backward()
    assert loss.isfinite()
    assert r.grad is not None
    assert r.grad.isfinite().all()


def test_all_tie_pulls_the_rewards_together() -> None:
    r = pair(1.0, -1.0).requires_grad_()
    losses.pair_loss(r, shares(0, 1, 0), "none", None).sum().backward()
    assert r.grad is not None
    assert r.grad[0, 0, 0] > 0 > r.grad[0, 1, 0]


def test_centring_by_hand() -> None:
    assert losses.centring(pair(2.0, -0.5)).item() == pytest.approx(1.5**2)
    assert losses.centring(double(1, 2, 3).reshape(1, 3, 1)).item() == pytest.approx(16)


def ranked(rewards: list[float], rankings: list[Ranking], ties: str, t: Tensor = T) -> float:
    terms = losses.ranking_terms(rankings, len(rewards), ties == "davidson")
    c, w = (double(*term).reshape(1, 1, -1) for term in terms)
    tie = t if ties == "davidson" else None
    return losses.plackett_luce(double(*rewards).reshape(1, -1, 1), c, w, tie).item()


def test_plackett_luce_by_hand() -> None:
    # worth 3, 2, 1; order 0, 2, 1: 3/6 x 1/3.
    r = [math.log(3), math.log(2), 0.0]
    assert ranked(r, [((0,), (2,), (1,))], "none") == pytest.approx(-math.log(1 / 6))


def test_a_tie_that_is_not_modelled_is_the_mean_over_its_orders() -> None:
    r = [0.3, -0.2, 1.0, 0.1]
    orders = [((2,), *((k,) for k in order)) for order in itertools.permutations((0, 1, 3))]
    mean = sum(ranked(r, [order], "none") for order in orders) / 6
    assert ranked(r, [((2,), (0, 1, 3))], "none") == pytest.approx(mean)


def test_plackett_luce_with_ties_by_hand() -> None:
    # worth 4, 1, 1, nu = 1/2. First choice {0, 1} of {0, 1, 2}: nu sqrt(4) = 1; the others weigh
    # 4 + 1 + 1, the pairs 1 + 1 + 1/2, the triple 4^(1/3) / 2. Then {2} is left alone.
    total = 6 + 2.5 + 4 ** (1 / 3) / 2
    loss = ranked([math.log(4), 0.0, 0.0], [((0, 1), (2,))], "davidson", double(math.log(0.5)))
    assert loss == pytest.approx(-math.log(1 / total))


def test_the_probabilities_of_all_rankings_sum_to_one() -> None:
    weak = [
        ((0,), (1,), (2,)), ((0,), (2,), (1,)), ((1,), (0,), (2,)), ((1,), (2,), (0,)),
        ((2,), (0,), (1,)), ((2,), (1,), (0,)), ((0, 1), (2,)), ((0, 2), (1,)), ((1, 2), (0,)),
        ((0,), (1, 2)), ((1,), (0, 2)), ((2,), (0, 1)), ((0, 1, 2),),
    ]  # fmt: skip
    r = [0.5, -0.3, 0.2]
    assert sum(math.exp(-ranked(r, [w], "davidson")) for w in weak) == pytest.approx(1)
    strict = [w for w in weak if len(w) == 3]
    assert sum(math.exp(-ranked(r, [w], "none")) for w in strict) == pytest.approx(1)


@pytest.mark.parametrize("ties", ["none", "davidson"])
def test_two_answers_are_the_pair_loss(ties: str) -> None:
    votes = [((0,), (1,)), ((0,), (1,)), ((0, 1),), ((1,), (0,))]
    by_pair = losses.pair_loss(pair(0.4, -1.1), shares(0.5, 0.25, 0.25), ties, T).item()
    assert ranked([0.4, -1.1], votes, ties) == pytest.approx(by_pair)


def test_plackett_luce_gradients_and_dimension_without_ties() -> None:
    c, w = losses.ranking_terms([((1,), (0, 2))], 3, True)
    c0, w0 = losses.ranking_terms([((1,), (0,), (2,))], 3, False)
    tied = torch.tensor([True, False])
    coefficients, stages = double(*c, *c0).reshape(1, 2, -1), double(*w, *w0).reshape(1, 2, -1)
    r = torch.randn(1, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    r.requires_grad_()
    t = double(0.2, 0.5).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda r, t: losses.plackett_luce(r, coefficients, stages, t.where(tied, -torch.inf)),
        (r, t),
    )
    both = losses.plackett_luce(r, coefficients, stages, t.where(tied, -torch.inf))
    plain = losses.plackett_luce(r, coefficients, stages, None)
    assert both[0, 1].item() == pytest.approx(plain[0, 1].item())


def test_too_many_answers_are_refused() -> None:
    with pytest.raises(DataError, match="at most 8"):
        losses.ranking_terms([((tuple(range(9)),))], 9, False)
