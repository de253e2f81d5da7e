"""Stage `light`: how much brighter or darker a place gets for who sees it from elsewhere.

Learned from real pictures and what is painted of them from keyframes that were taken farther off than some
distance: what was held near by would show everything as it is. It is the decoder that paints, and what it
makes up for by itself is not made up for again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from world_model.data.dataset import LatentDataset
from world_model.model import WorldModel
from world_model.nearer import brighter, meet
from world_model.precision import mixed_precision
from world_model.recall import Views
from world_model.recollection import COARSE_STEP, Glimpse, Recollection
from world_model.tokenizer import to_float, to_uint8
from world_model.training.decoder_stage import cutting
from world_model.training.pictures import save_rows

VIEWS, LATER = 8, 4
"""Pictures to a batch, and ticks before each at which keyframes were held for it."""
FAR = 0.5
"""Half extents up to which those near by are taken away."""
DULL = (0.2, 1.0)
"""What is left of the latents that keyframes tell: those of a dream know nothing else, and fade."""

Cut = Callable[[Tensor], Tensor]
"""Cuts a part out of latents, details or pictures."""


@dataclass(frozen=True)
class LightBatch:
    """Pictures uint8 (F, H, W, 3), the poses (F, 3) they were taken from, and what was held."""

    pictures: NDArray[np.uint8]
    stand: Tensor
    views: Views

    def to(self, device: torch.device) -> LightBatch:
        return replace(self, stand=self.stand.to(device), views=self.views.to(device))


class LightStage:
    """Trains the light of a world that recalls."""

    name = "light"

    def __init__(self, world: WorldModel, data: LatentDataset, held_out: LatentDataset, device: str) -> None:
        self.device = torch.device(device)
        self._world, self._data, self._held_out = world, data, held_out
        world.requires_grad_(False)
        recollection = world.dynamics.recollection
        assert recollection is not None, "this world has a map, or no sense of place at all"
        self._recollection: Recollection = recollection
        self.model = self._trained().requires_grad_(True)

    def _trained(self) -> nn.Module:
        """What this stage trains."""
        return self._recollection.light

    def batch(self, rng: np.random.Generator, done: float) -> LightBatch:
        return draw(self._data, rng, VIEWS)

    def loss(self, batch: LightBatch, done: float) -> tuple[Tensor, dict[str, float]]:
        batch = batch.to(self.device)
        told, out, x, cut = self._painted(batch)
        known = told.found.known.flatten(0, 1)[:, None].float()
        miss = ((out - x).abs().mean(1, keepdim=True) * cut(spread(known))).mean()
        return miss, {"miss": miss.item(), "known": known.mean().item()}

    def _painted(self, batch: LightBatch) -> tuple[Glimpse, Tensor, Tensor, Cut]:
        """What keyframes tell of pictures; a part of what is painted of that and of the pictures, and what
        cuts that out."""
        left = torch.empty(len(batch.stand), 1, 1, 1, device=self.device).uniform_(*DULL)
        cut = cutting(self._world.config.tokenizer.grid)
        told, out = self._decoded(batch, left, cut)
        return told, out, cut(to_float(batch.pictures, self.device)), cut

    def _decoded(
        self, batch: LightBatch, left: Tensor | None = None, cut: Cut = lambda whole: whole
    ) -> tuple[Glimpse, Tensor]:
        """What keyframes tell of pictures, and a part of what is painted of that; `left` is what is left of
        the latents in it, a middling part if not told."""
        with torch.no_grad():
            told = self._recollection.glimpse(batch.views, batch.stand)
            seen = self._recollection.seen(batch.views, batch.stand, told)
        z = seen[:, : self._world.config.tokenizer.latent_dim].float()
        if left is None:
            left = torch.tensor(DULL, device=self.device).mean()
        with mixed_precision(self.device.type):
            detail = self._recollection.detail(batch.views, batch.stand, told)
            return told, self._world.tokenizer.decode(cut(left * z), detail.each(cut)).float()

    @torch.no_grad()
    def preview(self, path: Path) -> dict[str, float]:
        """Real pictures, what keyframes show of them, that lit, and what is painted of it; PSNR (dB) of the
        last where anything is known."""
        batch = draw(self._held_out, np.random.default_rng(0), 64).to(self.device)
        told, out = self._decoded(batch)
        real, known = to_float(batch.pictures, self.device), told.found.known.flatten(0, 1)[:, None].float()
        colour = told.told[:, :3]
        lit = brighter(colour, self._recollection.light(meet(told.found, colour)), known)
        rows = [real, spread(colour), spread(lit), out]
        save_rows(path, [list(to_uint8(row[:8])) for row in rows], shrink=2)
        miss = ((out - real).square().mean(1, keepdim=True) * spread(known)).sum() / spread(known).sum()
        return {"psnr": -10 * math.log10(float(miss) / 4)}


def spread(coarse: Tensor) -> Tensor:
    """Of a glimpse's size -> of a picture's."""
    return coarse.repeat_interleave(COARSE_STEP, -2).repeat_interleave(COARSE_STEP, -1)


def draw(data: LatentDataset, rng: np.random.Generator, count: int, tried: int = 1) -> LightBatch:
    """`count` pictures; every second of them is that of `tried` which was taken nearest to a wall."""
    later = min(LATER, *map(len, data.episodes))

    def ahead(at: tuple[int, int]) -> float:
        return float(np.median(data.remembered.walls(at[0], at[1] + later)))

    drawn = [data.places(rng, tried if number % 2 else 1, later) for number in range(count)]
    places = [min(some, key=ahead) for some in drawn]
    held = data.held(places, later, beyond=(FAR * rng.random(count)).tolist())
    ends = [(i, s + later) for i, s in places]
    assert held is not None
    return LightBatch(
        np.stack([data.episodes[i].frames[t] for i, t in ends]),
        data.remembered.stands(ends),
        held.views._replace(held=held.views.held[:, -1:]),
    )
