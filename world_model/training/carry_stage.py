"""Stage `carry`: how far away what is seen stands, and what is drawn on the glass.

Depth is told by the source; what does not move with the rest is found by moving real pictures to the next
ones. The stage takes minutes.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from world_model.carry import FARTHEST, NEARNESS, Carry
from world_model.data.dataset import LatentDataset
from world_model.dream import DreamEngine
from world_model.model import WorldModel
from world_model.place import motion_between
from world_model.precision import mixed_precision, native_dtype
from world_model.tokenizer import to_float
from world_model.training.pictures import save_rows

FRAMES = 24
PICTURE_WEIGHT = 8.0
"""Of the moved picture's error, in [-1, 1], beside that of inverse depths, in units of NEARNESS."""
CLOSEST = 0.03
"""Half extents: what is nearer counts as this near."""
PREVIEW_TICKS = 4


class CarryBatch(NamedTuple):
    """z (F, C, h, w), motion (F, 3), depth (F, H / 4, W / 4) in half extents, pictures uint8 (F, 2, H, W, 3)
    before and after the motion."""

    z: Tensor
    motion: Tensor
    depth: Tensor
    pictures: NDArray[np.uint8]


def carrying(world: WorldModel) -> nn.ModuleDict:
    """What this stage trains."""
    assert world.dynamics.carry is not None, "nothing moves in this world but the player"
    return nn.ModuleDict({"carry": world.dynamics.carry})


class CarryStage:
    """Trains the carry of a world with a map."""

    name = "carry"

    def __init__(self, world: WorldModel, data: LatentDataset, held_out: LatentDataset, device: str) -> None:
        self.device = torch.device(device)
        self._world, self._data, self._held_out = world, data, held_out
        world.requires_grad_(False)
        self.model: nn.Module = carrying(world).requires_grad_(True)
        assert world.dynamics.carry is not None and world.dynamics.place is not None
        self._carry: Carry = world.dynamics.carry
        self._carry.spread.copy_(world.dynamics.place.map.surfaces.spread.detach())

    def batch(self, rng: np.random.Generator, done: float) -> CarryBatch:
        data, places = self._data, self._data.places(rng, FRAMES, 1)
        z, motion = _stretch(data, places, 1)
        depth = np.stack([data.depth(data.episodes[i], s) for i, s in places])
        pictures = np.stack([data.episodes[i].frames[s : s + 2] for i, s in places])
        return CarryBatch(z[:, 0], motion[:, 0], torch.from_numpy(depth), pictures)

    def loss(self, batch: CarryBatch, done: float) -> tuple[Tensor, dict[str, float]]:
        z, motion, depth = (part.to(self.device) for part in batch[:3])
        before, after = (to_float(batch.pictures[:, k], self.device) for k in (0, 1))
        with mixed_precision(self.device.type):
            nearness, _ = self._carry.reading(z)
            moved = self._carry(before, z, motion, mode="bilinear")
        wanted = 1 / depth.clamp(CLOSEST, FARTHEST)[:, None]
        far, miss = (nearness - wanted).abs().mean() / NEARNESS, (moved - after).abs().mean()
        return far + PICTURE_WEIGHT * miss, {"depth": far.item(), "picture": miss.item()}

    @torch.no_grad()
    def preview(self, path: Path) -> dict[str, float]:
        """Real frames above those of PREVIEW_TICKS before, carried there; errors of one tick as parts of the
        variance, everywhere and where things move, beside those of leaving all as it is."""
        data = self._held_out
        places = data.places(np.random.default_rng(0), 64, PREVIEW_TICKS)
        z, motion = (part.to(self.device) for part in _stretch(data, places, PREVIEW_TICKS))
        lively = data.lively(places, PREVIEW_TICKS)
        assert lively is not None, "this source tells no boxes"
        own = [z[:, 0]]
        with mixed_precision(self.device.type):
            for t in range(PREVIEW_TICKS):
                moved = self._world.carried(own[-1], motion[:, t])
                assert moved is not None
                own.append(moved)
        engine = DreamEngine(self._world, native_dtype(self.device.type))
        busiest = lively[:, 0].mean((1, 2)).argsort(descending=True)[:16].to(self.device)
        real, shown = (engine.decode(part[busiest]) for part in (z[:, -1], own[-1]))
        save_rows(path, [list(part[i : i + 8]) for i in (0, 8) for part in (real, shown)], shrink=2)
        scores: dict[str, float] = {}
        variance, weight = z.var(), lively[:, 1].to(self.device)
        for name, guess in (("carried", own[1]), ("left", own[0])):
            miss = (guess - z[:, 1]).square().mean(1) / variance
            scores |= {name: float(miss.mean()), f"{name}_lively": _mean(miss, weight)}
        return scores


def _mean(x: Tensor, weight: Tensor) -> float:
    return float((x * weight).sum() / weight.sum().clamp(min=1e-6))


def _stretch(data: LatentDataset, places: list[tuple[int, int]], ticks: int) -> tuple[Tensor, Tensor]:
    """Latents (F, ticks + 1, C, h, w) from (episode, tick) on, and the motions (F, ticks, 3) between them."""
    z = np.stack([data.latents[i][s : s + ticks + 1] for i, s in places])
    pose = data.path(places, ticks)
    assert pose is not None, "this source tells no poses"
    return torch.from_numpy(z).float(), motion_between(pose[:, :-1], pose[:, 1:])
