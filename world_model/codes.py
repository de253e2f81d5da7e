"""A head that decides: what cannot be foreseen becomes one of a few things in each cell, and not their mean.

While it learns, a reader that knows the next latent names what is new in each cell of 16 x 16 pixels, by one
of `codes` classes; a painter makes the next latent of that; and a guesser, which does not know, says how
likely each class is. In a dream the guesser's odds are drawn from. Each cell may say little: what it says
costs as much as it surprises the guesser (a variational autoencoder between two ticks).

Cells that draw each for itself would show half a monster that walks and half of one that waits. So few cells
far apart draw first, more between them then, who know what was drawn, and all others last.

Axes: F frames, C channels of the latent, K classes, h w rows and columns of the latent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from world_model.config import DynamicsConfig
from world_model.map import SEEN_CHANNELS
from world_model.tokenizer import ResBlock

NAT = 1 / 120
"""What a nat of surprise costs in a cell, beside the variance that is missed there."""
TEACH_GUESSER = 0.8
"""Share of that by which the guesser learns the reader's ways; by the rest the reader becomes predictable."""
UNSURE = 0.01
"""Of the odds, spread over all classes while it learns: no class dies out."""
APART = (4, 2, 1)
"""Cells from one to the next of those that have drawn after each turn."""


class CodeHead(nn.Module):
    """Draws a class for each cell and paints the next latent."""

    def __init__(self, config: DynamicsConfig, latent_dim: int) -> None:
        super().__init__()
        d, told = config.head_dim_conv, 2 * latent_dim + config.conv_dim + SEEN_CHANNELS
        self.classes = config.codes

        def classifier(channels: int, blocks: int) -> nn.Sequential:
            hidden = [ResBlock(d) for _ in range(blocks)]
            stem, out = nn.Conv2d(channels, d, 3, padding=1), nn.Conv2d(d, config.codes, 1)
            return nn.Sequential(stem, *hidden, nn.ReLU(), out)

        self.guess = classifier(told + config.codes, config.head_blocks)
        self.read = classifier(told + 2 * latent_dim, 1)
        self.stem = nn.Conv2d(told, d, 3, padding=1)
        self.embed_class = nn.Conv2d(config.codes, d, 1, bias=False)
        self.blocks = nn.ModuleList(ResBlock(d) for _ in range(config.head_blocks))
        self.out = nn.Conv2d(d, latent_dim, 3, padding=1)
        nn.init.zeros_(self.out.weight)

    def paint(self, chosen_FKhw: Tensor, mean: Tensor, present: Tensor, features: Tensor) -> Tensor:
        """The next latent (F, C, h, w) where these classes, one-hot, are drawn. present: as it is carried."""
        x = self.stem(self._told(mean, present, features))
        x = x + self.embed_class(chosen_FKhw.to(x.dtype))
        for block in self.blocks:
            x = block(x)
        out: Tensor = mean + self.out(F.relu(x)).float()
        return out

    def sample(self, noise: Tensor, mean: Tensor, present: Tensor, features: Tensor, steps: int) -> Tensor:
        """A latent from unit noise (F, C, h, w), of which one channel is used; `steps` is another head's."""
        told = self._told(mean, present, features)
        chance = 0.5 * (1 + torch.erf(noise[:, :1].float() / math.sqrt(2)))
        chosen = told.new_zeros(len(told), self.classes, *told.shape[2:])
        for turn in turns(told):
            odds = self.guess(torch.cat((told, chosen), 1)).float().softmax(1)
            drawn = (odds.cumsum(1) < chance).sum(1).clamp(max=self.classes - 1)
            chosen = torch.where(turn, self._one_hot(drawn).to(told.dtype), chosen)
        return self.paint(chosen, mean, present, features).clamp(-1, 1)

    def loss(
        self, clean: Tensor, mean: Tensor, present: Tensor, features: Tensor, cost: Tensor, variance: float
    ) -> tuple[Tensor, dict[str, float]]:
        """What is missed of the latents `clean` where the reader names the classes, and what these surprise;
        `cost` (F, 1, h, w) of an error in each cell, one in the mean."""
        told = self._told(mean, present, features)
        news = torch.cat((clean - mean, clean - present), 1).to(told.dtype)
        read = self._odds(self.read(torch.cat((told, news), 1)))
        named = torch.multinomial(read.detach().movedim(1, -1).flatten(0, -2), 1)
        drawn = self._one_hot(named.view(len(read), *read.shape[2:]))
        painted = self.paint(drawn + read - read.detach(), mean, present, features)
        missed = ((painted - clean).square().mean(1, keepdim=True) * cost).mean() / variance
        which = int(torch.randint(len(APART), ()))
        every = list(turns(told))
        known = sum(every[:which], torch.zeros_like(every[0]))
        guess = self._odds(self.guess(torch.cat((told, (drawn * known).to(told.dtype)), 1)))
        weight = every[which] * len(APART)  # each turn is the one that counts every third time
        taught = _surprise(read.detach(), guess, weight)
        surprise = TEACH_GUESSER * taught + (1 - TEACH_GUESSER) * _surprise(read, guess.detach(), weight)
        return missed + NAT * surprise, {"head": missed.item(), "nats": taught.item()}

    def _told(self, mean: Tensor, present: Tensor, features: Tensor) -> Tensor:
        return torch.cat((mean, present, features.to(mean.dtype)), 1)

    def _odds(self, logits: Tensor) -> Tensor:
        return (1 - UNSURE) * logits.float().softmax(1) + UNSURE / self.classes

    def _one_hot(self, which_Fhw: Tensor) -> Tensor:
        return F.one_hot(which_Fhw, self.classes).movedim(-1, 1).float()


def turns(x: Tensor) -> Iterator[Tensor]:
    """Which cells (1, 1, h, w) of a latent like x draw in each turn."""
    rows, columns = (torch.arange(n, device=x.device) for n in x.shape[-2:])
    before = torch.zeros(*x.shape[-2:], dtype=torch.bool, device=x.device)
    for apart in APART:
        middle = apart // 2
        now = (rows % apart == middle)[:, None] & (columns % apart == middle) & ~before
        before = before | now
        yield now[None, None]


def _surprise(read: Tensor, guess: Tensor, weight: Tensor) -> Tensor:
    """Nats a cell by which the reader's odds tell more than the guesser's: Kullback and Leibler's measure."""
    return ((read * (read.log() - guess.log())).sum(1, keepdim=True) * weight).mean()
