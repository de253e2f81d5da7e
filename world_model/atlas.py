"""Where could this be? What the map shows from a lattice of poses, and how well frames fit there.

A look at one frame, the localizer's or any other, takes one red wall for another; a stretch of frames with
the steps between them seldom does. Each lattice pose is tried as the place where the stretch was at one of
its frames, by looking up what the lattice shows nearest to where it was at each of the others.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from world_model.field import EXTENT, ROOM
from world_model.place import PlaceModel, compose, motion_between, wrap

SPACING, HEADINGS = 0.1, 16
"""Of the lattice: half extents, and directions on the circle. Finer is no better: a frame looks like its
neighbours' at best anyway, and an `Aligner` finds the rest of the way."""
APART = 0.14
"""Poses nearer than this to a better one are not given."""
BEST_OF = 600
AT_ONCE = 512


class Atlas:
    """What the map of `model` shows from all lattice poses that have room for a player."""

    def __init__(self, model: PlaceModel, latent_dim: int) -> None:
        device = model.map.surfaces.walls.embed.device
        line = torch.arange(-EXTENT, EXTENT, SPACING, device=device)
        self._side = len(line)
        cells = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).flatten(0, 1)
        free = model.map.surfaces.walls(cells) > ROOM
        self._index = torch.where(free, free.cumsum(0) - 1, -1)
        turn = torch.arange(HEADINGS, device=device) * (2 * math.pi / HEADINGS)
        count = int(free.sum())
        places = cells[free][:, None].expand(-1, HEADINGS, -1)
        self.poses = torch.cat((places, turn[None, :, None].expand(count, -1, 1)), 2).flatten(0, 1)
        """(N, 3)"""
        parts = self.poses.split(AT_ONCE) if count else ()  # an untrained map may have no room anywhere
        shown = [_blur(model.map.seen(part)[:, :latent_dim]) for part in parts]
        self._shown = torch.cat(shown) if shown else self.poses.new_zeros(0, 0)

    def find(self, z_BTChw: Tensor, walked_BT3: Tensor, first: int, count: int) -> Tensor:
        """The `count` lattice poses (B, count, 3) that fit best as the pose at frame `first`, best first.

        walked: the poses at the T frames of z in any common frame of reference.
        """
        if not len(self.poses):
            return z_BTChw.new_zeros(len(z_BTChw), 0, 3)
        found = [self._fit(z, walked, first) for z, walked in zip(z_BTChw, walked_BT3, strict=True)]
        return torch.stack([_peaks(self.poses, misfit, count) for misfit in found])

    def _fit(self, z_TChw: Tensor, walked_T3: Tensor, first: int) -> Tensor:
        """How badly each lattice pose fits, (N,)."""
        differ_TN = torch.cdist(_blur(z_TChw), self._shown).square()
        unseen_T = differ_TN.median(1).values
        misfit = torch.zeros(len(self.poses), device=self.poses.device)
        for differ_N, unseen, walked in zip(differ_TN, unseen_T, walked_T3, strict=True):
            at = compose(self.poses, motion_between(walked_T3[first], walked))
            spot = ((at[:, :2] + EXTENT) / SPACING).round().long().clamp(0, self._side - 1)
            cell = self._index[spot[:, 0] * self._side + spot[:, 1]]
            turn = (at[:, 2] * (HEADINGS / (2 * math.pi))).round().long() % HEADINGS
            told = differ_N[(cell * HEADINGS + turn).clamp(min=0)]
            misfit += torch.where(cell < 0, unseen, told)
        return misfit


def _peaks(poses_N3: Tensor, misfit_N: Tensor, count: int) -> Tensor:
    """The best poses (count, 3), none close to a better one as long as there are others."""
    best = poses_N3[misfit_N.argsort()[:BEST_OF]]
    away = (best[:, None, :2] - best[:, :2]).square().sum(-1)
    near = away + (0.5 * wrap(best[:, None, 2] - best[:, 2])).square() < APART**2
    kept: list[int] = []
    for i, close in enumerate(near.cpu().numpy()):
        if not close[kept].any():
            kept.append(i)
        if len(kept) == count:
            break
    short = [i for i in range(len(best)) if i not in set(kept)][: count - len(kept)]
    chosen = (kept + short + [0] * count)[:count]
    return best[torch.tensor(chosen, device=best.device)]


def _blur(z_FChw: Tensor) -> Tensor:
    """What is left of latents at half their resolution: (F, C h w / 4)."""
    return F.avg_pool2d(z_FChw.float(), 2).flatten(1)
