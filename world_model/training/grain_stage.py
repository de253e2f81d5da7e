"""Stage `grain`: how rough surfaces are that were only seen from afar, or made up.

Held to real pictures in one thing alone: how much neighbouring pixels differ, across and upwards, in several
sizes. Where bricks are nobody can know who saw a wall as three pixels, and a loss that asks for them pixel by
pixel would have the grain vanish.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from world_model.nearer import meet, untold
from world_model.precision import mixed_precision
from world_model.recall import made_up
from world_model.recollection import Glimpse
from world_model.tokenizer import to_float, to_uint8
from world_model.training.light_stage import VIEWS, LightBatch, LightStage, draw, spread
from world_model.training.pictures import save_rows

TRIED = 6
"""Of so many pictures every second one is the nearest to a wall."""
MADE_UP = 4
"""Of so many pictures one is seen in keyframes as dreams paint those that they make up."""
SIZES, WINDOW = 3, 32
"""Pixels, two by two and four by four of them; and the windows of a picture that are compared as a whole,
each half over the next."""


class GrainStage(LightStage):
    """Trains the grain of a world that recalls."""

    name = "grain"

    def _trained(self) -> nn.Module:
        return self._recollection.grain

    def batch(self, rng: np.random.Generator, done: float) -> LightBatch:
        return draw(self._data, rng, VIEWS, TRIED)

    def loss(self, batch: LightBatch, done: float) -> tuple[Tensor, dict[str, float]]:
        batch = self._partly_made_up(batch.to(self.device))
        told, out, x, cut = self._painted(batch)
        weight = windows(cut(spread(self._untold(batch, told))), WINDOW)
        miss = torch.stack([(a - b).square() for a, b in zip(roughness(out), roughness(x), strict=True)])
        loss = (miss * weight).sum() / weight.sum().clamp(min=1)
        return 100 * loss, {"miss": loss.item(), "untold": weight.mean().item()}

    @torch.no_grad()
    def _partly_made_up(self, batch: LightBatch) -> LightBatch:
        """The same with the keyframes of every fourth picture as a dream would have painted them: decoded."""
        image = batch.views.image.clone()
        tokenizer, some = self._world.tokenizer, image[::MADE_UP]
        with mixed_precision(self.device.type):
            x = some.flatten(0, 1).float() * (2 / 255) - 1
            painted = torch.cat([tokenizer.decode(tokenizer.encode(part)).float() for part in x.split(8)])
        image[::MADE_UP] = ((painted + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).view_as(some)
        imagined = torch.zeros(image.shape[:2], dtype=torch.bool, device=self.device)
        imagined[::MADE_UP] = True
        return replace(batch, views=batch.views._replace(image=image, imagined=imagined))

    @staticmethod
    def _untold(batch: LightBatch, told: Glimpse) -> Tensor:
        """Where it is learned: where it has its whole strength, or it would be as strong where it fades."""
        return (untold(meet(told.found, told.told[:, :3]), made_up(batch.views, told.found)) == 1).float()

    @torch.no_grad()
    def preview(self, path: Path) -> dict[str, float]:
        """Real pictures and what is painted of what keyframes show of them; and how rough that is, in percent
        of the real ones."""
        batch = draw(self._held_out, np.random.default_rng(0), 64, TRIED).to(self.device)
        batch = self._partly_made_up(batch)
        told, out = self._decoded(batch)
        real = to_float(batch.pictures, self.device)
        weight = windows(spread(self._untold(batch, told)), WINDOW)
        save_rows(path, [list(to_uint8(row[:16])) for row in (real, out)], shrink=2)
        painted, there = (sum(float((r * weight).sum()) for r in roughness(x)) for x in (out, real))
        return {"rough_percent": 100 * painted / max(there, 1e-6)}


def windows(x_F1HW: Tensor, size: int) -> Tensor:
    """Means over the windows of a picture, which are no larger than it."""
    size = min(size, *x_F1HW.shape[2:])
    return F.avg_pool2d(x_F1HW, size, size // 2)


def roughness(x_F3HW: Tensor) -> list[Tensor]:
    """Root mean squares of the differences of neighbours, in the windows of a picture in [-1, 1]: of each of
    SIZES those across and those upwards."""
    x = x_F3HW.float().mean(1, keepdim=True)
    found = []
    for k in range(SIZES):
        across = F.pad(x[..., :, 1:] - x[..., :, :-1], (0, 1))
        upwards = F.pad(x[..., 1:, :] - x[..., :-1, :], (0, 0, 0, 1))
        found += [(windows(d.square(), WINDOW >> k) + 1e-5).sqrt() for d in (across, upwards)]
        x = F.avg_pool2d(x, 2)
    return found
