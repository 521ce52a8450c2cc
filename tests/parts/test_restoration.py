"""Stochastic restoration: how many weights return, which, and that draws follow from seed and step."""

import torch

from testtime.parts.restoration import restore_at_random


def test_a_share_of_the_weights_returns_and_the_others_stay() -> None:
    p, q = torch.zeros(40, 50), torch.zeros(3000)
    restore_at_random([p, q], [torch.ones(40, 50), torch.full((3000,), 2.0)], 0.1, seed=0, step=4)
    assert set(p.unique().tolist()) == {0.0, 1.0}
    assert set(q.unique().tolist()) == {0.0, 2.0}
    assert 0.07 < p.mean() < 0.13
    assert 0.07 < q.mean() / 2 < 0.13


def test_draws_follow_from_seed_and_step() -> None:
    def drawn(chance: float, seed: int, step: int) -> torch.Tensor:
        p = torch.zeros(100)
        restore_at_random([p], [torch.ones(100)], chance, seed, step)
        return p

    assert drawn(0.5, 0, 1).equal(drawn(0.5, 0, 1))
    assert not drawn(0.5, 0, 1).equal(drawn(0.5, 0, 2))
    assert not drawn(0.5, 0, 1).equal(drawn(0.5, 1, 1))
    assert not drawn(0.0, 0, 1).any()
    assert drawn(1.0, 0, 1).all()
