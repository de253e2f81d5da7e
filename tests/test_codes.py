"""A head that decides: it names, guesses and paints."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tiny import TINY, tiny_model
from world_model.codes import CodeHead, turns
from world_model.map import SEEN_CHANNELS

DECIDING = replace(TINY, dynamics=replace(TINY.dynamics, codes=4))
LATENT = (4, 2, 4)


def told(frames: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, present and features of so many frames."""
    g = torch.Generator().manual_seed(1)
    mean, present = (torch.rand(frames, *LATENT, generator=g) - 0.5 for _ in range(2))
    return mean, present, torch.zeros(frames, TINY.dynamics.conv_dim + SEEN_CHANNELS, *LATENT[1:])


def deciding(seed: int = 0) -> CodeHead:
    head = tiny_model(seed, DECIDING).dynamics.head
    assert isinstance(head, CodeHead)
    return head


@pytest.fixture(scope="module")
def taught() -> CodeHead:
    """A head of a world in which the next latent is 0.5 or -0.5 all over, by chance."""
    torch.manual_seed(0)
    head = deciding()
    optimizer = torch.optim.Adam(head.parameters(), 3e-3)
    cost = torch.ones(64, 1, *LATENT[1:])
    mean, present, features = told(64)
    mean = mean * 0
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / 300)
        side = (torch.rand(64, 1, 1, 1) < 0.5).float() - 0.5
        loss, _ = head.loss(side.expand_as(mean), mean, present, features, cost, 0.25)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return head


def test_it_decides_where_a_mean_would_be_nowhere(taught: CodeHead) -> None:
    mean, present, features = told(64)
    with torch.no_grad():
        drawn = taught.sample(torch.randn(64, *LATENT), mean * 0, present, features, 1)
    assert float((drawn.abs() - 0.5).abs().mean()) < 0.25, "a mean would miss by 0.5"
    assert 0.3 < float((drawn > 0).float().mean()) < 0.7


def test_the_guesser_knows_the_odds(taught: CodeHead) -> None:
    mean, present, features = told(64)
    cost = torch.ones(64, 1, *LATENT[1:])
    clean = torch.full_like(mean, 0.5)
    with torch.no_grad():
        losses = [taught.loss(clean, mean * 0, present, features, cost, 0.25)[1] for _ in range(60)]
    # One of the eight cells draws first, by a bit; the others know.
    assert 0.03 < sum(told_of["nats"] for told_of in losses) / 60 < 0.69 / 2
    assert losses[0]["head"] < 0.1


def test_every_cell_draws_in_one_turn() -> None:
    for rows, columns in ((10, 16), (2, 4), (1, 1)):
        every = torch.cat(list(turns(torch.zeros(1, 1, rows, columns))))
        assert bool((every.sum(0) == 1).all()) and every.shape[-2:] == (rows, columns)


def test_the_same_noise_draws_the_same_and_other_noise_other_classes() -> None:
    head, (mean, present, features) = deciding(), told(8)
    first, second = torch.randn(2, 8, *LATENT)
    with torch.no_grad():
        once, again, other = (head.sample(n, mean, present, features, 2) for n in (first, first, second))
    assert torch.equal(once, again) and not torch.allclose(once, other)
    assert bool((once.abs() <= 1).all())


def test_each_class_is_drawn_as_often_as_it_is_likely() -> None:
    head, odds = deciding(), torch.tensor([0.1, 0.2, 0.3, 0.4])
    last = head.guess[-1]
    assert isinstance(last, torch.nn.Conv2d)
    torch.nn.init.zeros_(last.weight)
    last.bias.data = odds.log()
    counts = torch.zeros(4)
    head.paint = lambda chosen, *_: counts.add_(chosen.sum((0, 2, 3)))  # type: ignore[assignment,func-returns-value]
    frames = 4000
    mean, present, features = told(1)
    many = (x.expand(frames, -1, -1, -1) for x in (mean, present, features))
    with torch.no_grad():
        head.sample(torch.randn(frames, *LATENT), *many, 1)
    torch.testing.assert_close(counts / counts.sum(), odds, atol=0.01, rtol=0)
