"""What nobody has seen, made up once and remembered from then on.

A trunk that is asked for what lies around a corner answers with the mean of all that might be there: fog.
Here one of all these is drawn instead: given what keyframes show of a view, a flow from noise to a latent of
the whole of it. Its picture is then held as a keyframe, so whoever comes back finds what was made up.

Drawing takes some ticks, and begins where the player will look by then.

Axes: B dreams, C channels, h w rows and columns of the latent, N tokens, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from world_model.dynamics import CONDITION, NOISE_STD, FilmBlock, SpaceAttention
from world_model.recollection import COARSE_CHANNELS

STEPS = 5
"""Of the flow, one to a tick."""
LEVELS = tuple((k / STEPS) ** 1.3 for k in range(STEPS + 1))
"""Noise levels of the steps: shorter ones first, where it is decided what there is."""
AHEAD = 0.75
"""By which part of a step its direction is taken to change as it did in the last one. Half would be the
method of Adams and Bashforth; so few steps leave it dull, and none at all more so. With this five spread as
much as 24 do."""
PAINTED = 2
"""Ticks in which it is painted, when it is made up: more than half of the work in the first."""
TICKS = STEPS + PAINTED
"""From the tick after a view is begun to that in which it is held, the last of these."""
HEADS = 6


class Vision(NamedTuple):
    """A view that is being made up.

    x (B, C, h, w) so far, and clean, what it was last taken for; clue (B, D, h, w) in half precision, what it
    makes of what keyframes tell of it; pose (B, 3) it is seen from; left (B,), ticks to go, 0 where nothing
    is being made up. In the last of them it is held as a keyframe.
    """

    x: Tensor
    clean: Tensor
    clue: Tensor
    pose: Tensor
    left: Tensor


class Block(nn.Module):
    """Attention among the tokens of a view and a perceptron, both scaled by how noisy it is."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm_space, self.norm_mlp = nn.RMSNorm(dim), nn.RMSNorm(dim)
        self.space = SpaceAttention(dim, HEADS)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim))
        self.film = nn.Linear(CONDITION, 2 * dim)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def filmed(self, x_FND: Tensor, film: Tensor) -> Tensor:
        """Tokens (F, N, D) after this block; film: what its layer of that name makes of the noise level."""
        space, mlp = film[:, None].chunk(2, -1)
        x = x_FND + self.space(self.norm_space(x_FND) * (1 + space))
        out: Tensor = x + self.mlp(self.norm_mlp(x) * (1 + mlp))
        return out


class Imagination(nn.Module):
    """A flow from noise to the latent of a view, given what keyframes tell of it.

    noised(tau) = tau * clean + (1 - tau) * noise. It predicts the clean latent.
    """

    def __init__(self, latent_dim: int, grid: tuple[int, int], dim: int, layers: int = 3) -> None:
        super().__init__()
        wide = 2 * dim
        self.grid = grid
        self._known: list[Tensor] | None = None
        self.level = nn.Sequential(
            nn.Linear(8, CONDITION), nn.SiLU(), nn.Linear(CONDITION, CONDITION), nn.SiLU()
        )
        self.clue = nn.Conv2d(16 * COARSE_CHANNELS, dim, 1)
        self.stem = nn.Conv2d(latent_dim + dim, dim, 3, padding=1)
        self.embed_cell = nn.Parameter(torch.randn(dim, *grid) * 0.02)
        self.enter = nn.ModuleList(FilmBlock(dim, CONDITION) for _ in range(2))
        self.down = nn.Linear(4 * dim, wide)
        self.embed_token = nn.Parameter(torch.randn(grid[0] * grid[1] // 4, wide) * 0.02)
        self.layers = nn.ModuleList(Block(wide) for _ in range(layers))
        self.up = nn.Linear(wide, 4 * dim)
        self.leave = nn.ModuleList(FilmBlock(dim, CONDITION) for _ in range(1))
        self.out = nn.Conv2d(dim, latent_dim, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, noised: Tensor, tau: Tensor, told: Tensor) -> Tensor:
        """(F, C, h, w) latents, tau (F,) and told (F, COARSE_CHANNELS, 4 h, 4 w) -> the clean latents."""
        return self._clean(noised, self._films(tau), self.hint(told))

    def hint(self, told: Tensor) -> Tensor:
        """What is made of what keyframes tell of a view: (F, D, h, w)."""
        clue: Tensor = self.clue(F.pixel_unshuffle(told.to(self.stem.weight.dtype), 4))
        return clue

    def _films(self, tau: Tensor) -> list[Tensor]:
        """What each block is told of the noise level."""
        powers = torch.arange(4, device=tau.device)
        angles = tau[:, None] * torch.pi * 2.0**powers
        e = self.level(torch.cat((angles.sin(), angles.cos()), 1).to(self.stem.weight.dtype))
        return [block.film(e) for block in (*self.enter, *self.layers, *self.leave)]

    def _clean(self, noised: Tensor, films: list[Tensor], clue: Tensor) -> Tensor:
        given = iter(films)
        x = self.stem(torch.cat((noised.to(clue.dtype), clue), 1)) + self.embed_cell
        for block in self.enter:
            x = block.filmed(x, next(given))  # type: ignore[operator]
        tokens = self.down(F.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2))
        tokens = tokens + self.embed_token
        for layer in self.layers:
            tokens = layer.filmed(tokens, next(given))  # type: ignore[operator]
        up = self.up(tokens).transpose(1, 2).unflatten(2, (self.grid[0] // 2, self.grid[1] // 2))
        x = x + F.pixel_shuffle(up, 2)
        for block in self.leave:
            x = block.filmed(x, next(given))  # type: ignore[operator]
        return torch.tanh(self.out(F.silu(x)).float())

    @torch.no_grad()
    def prepare(self) -> None:
        """Works out once what the few noise levels of `step` mean to each block: for weights that stay."""
        self._known = self._films(torch.tensor(LEVELS[:STEPS], device=self.embed_cell.device))

    def nothing(self, batch: int, device: torch.device) -> Vision:
        """What dreams begin with."""
        rows, columns = self.grid
        blank = torch.zeros(batch, self.out.out_channels, rows, columns, device=device)
        return Vision(
            blank,
            blank,
            torch.zeros(batch, self.clue.out_channels, rows, columns, dtype=torch.half, device=device),
            torch.zeros(batch, 3, device=device),
            torch.zeros(batch, dtype=torch.long, device=device),
        )

    def step(self, x: Tensor, clean: Tensor, left_B: Tensor, clue: Tensor) -> tuple[Tensor, Tensor]:
        """x and clean of `Vision` a tick on; `left` (B,) steps are to go, this one included. Of second order
        (Adams and Bashforth): so few steps of the first leave it dull."""
        levels = torch.tensor(LEVELS, device=x.device)
        k = (STEPS - left_B).clamp(0, STEPS - 1)
        before, now, then = levels[(k - 1).clamp(min=0)], levels[k], levels[k + 1]
        films = self._films(now) if self._known is None else [film[k] for film in self._known]
        last, clean = clean, self._clean(x, films, clue.to(self.stem.weight.dtype))
        ahead = torch.where((k > 0) & (k < STEPS - 1), (then - now) / (now - before).clamp(min=1e-3), 0)
        ahead, way = (y.view(-1, 1, 1, 1) for y in (AHEAD * ahead, (then - now) / (1 - now)))
        return x + (clean + ahead * (clean - last) - x) * way, clean

    def sample(self, noise: Tensor, told: Tensor) -> Tensor:
        """A latent from unit noise (F, C, h, w)."""
        x, clean, clue = noise * NOISE_STD, torch.zeros_like(noise), self.hint(told)
        for left in range(STEPS, 0, -1):
            x, clean = self.step(x, clean, torch.full((len(x),), left, device=x.device), clue)
        return x.clamp(-1, 1)
