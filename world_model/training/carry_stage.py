"""Stage `carry`: what a motion makes of a picture, in many small steps before the trunk builds on it.

Pairs of frames and the motion between them are all it needs. Each carries twice, the second time what it made
itself: what is carried on from tick to tick must not wear off.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from world_model.carry import Carry
from world_model.data.dataset import LatentDataset
from world_model.dream import DreamEngine, WorldModel
from world_model.place import motion_between
from world_model.precision import mixed_precision, native_dtype
from world_model.training.dynamics_stage import costs
from world_model.training.pictures import save_rows

FRAMES, TICKS = 64, 2


class CarryBatch(NamedTuple):
    """z (F, TICKS + 1, C, h, w), motion (F, TICKS, 3), lively (F, TICKS + 1, h, w)."""

    z: Tensor
    motion: Tensor
    lively: Tensor


def carrying(world: WorldModel) -> nn.ModuleDict:
    """What this stage trains."""
    assert world.dynamics.trunk.carry is not None, "nothing moves in this world but the player"
    return nn.ModuleDict({"carry": world.dynamics.trunk.carry})


class CarryStage:
    """Trains the carry of a world with a map."""

    name = "carry"

    def __init__(self, world: WorldModel, data: LatentDataset, held_out: LatentDataset, device: str) -> None:
        self.device = torch.device(device)
        self._world, self._data, self._held_out = world, data, held_out
        world.requires_grad_(False)
        self.model: nn.Module = carrying(world).requires_grad_(True)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        assert world.dynamics.trunk.carry is not None and world.dynamics.place is not None
        self._carry: Carry = world.dynamics.trunk.carry
        self._carry.spread.copy_(world.dynamics.place.map.surfaces.spread.detach())
        sample = np.concatenate([z[::100].ravel() for z in data.latents[:20]]).astype(np.float32)
        self._variance = float(sample.var())

    def batch(self, rng: np.random.Generator, done: float) -> CarryBatch:
        return _draw(self._data, rng, FRAMES)

    def loss(self, batch: CarryBatch, done: float) -> tuple[Tensor, dict[str, float]]:
        z, motion, lively = (part.to(self.device) for part in batch)
        weight = costs(lively)
        total, metrics, own = torch.zeros((), device=self.device), {}, z[:, 0]
        with mixed_precision(self.device.type):
            for t in range(motion.shape[1]):
                own = self._carry(own, motion[:, t])
                miss = ((own - z[:, t + 1]).square() * weight[:, t + 1]).mean() / self._variance
                total, metrics[f"tick{t + 1}"] = total + miss, miss.item()
        return total, metrics

    @torch.no_grad()
    def preview(self, path: Path) -> dict[str, float]:
        """Real frames above the frames before them, carried; errors as parts of the variance, everywhere and
        where things move, beside those of leaving all as it is."""
        z, motion, lively = _draw(self._held_out, np.random.default_rng(0), 64)
        with mixed_precision(self.device.type):
            own = self._carry(z[:, 0].to(self.device), motion[:, 0].to(self.device)).cpu()
        engine = DreamEngine(self._world, native_dtype(self.device.type))
        busiest = lively[:, 1].mean((1, 2)).argsort(descending=True)[:16]
        real, shown = (engine.decode(part[busiest].to(self.device)) for part in (z[:, 1], own))
        save_rows(path, [list(part[i : i + 8]) for i in (0, 8) for part in (real, shown)], shrink=2)
        scores: dict[str, float] = {}
        for name, guess in (("carried", own), ("left", z[:, 0])):
            miss = (guess - z[:, 1]).square().mean(1) / self._variance
            scores |= {name: float(miss.mean()), f"{name}_lively": _mean(miss, lively[:, 1])}
        return scores


def _mean(x: Tensor, weight: Tensor) -> float:
    return float((x * weight).sum() / weight.sum().clamp(min=1e-6))


def _draw(data: LatentDataset, rng: np.random.Generator, frames: int) -> CarryBatch:
    places = data.places(rng, frames, TICKS)
    z = np.stack([data.latents[i][s : s + TICKS + 1] for i, s in places])
    poses = [data.pose(i) for i, _ in places]
    pose = torch.from_numpy(
        np.stack([p[s : s + TICKS + 1] for p, (_, s) in zip(poses, places, strict=True) if p is not None])
    )
    lively = data.lively(places, TICKS)
    assert lively is not None, "this source tells no boxes"
    return CarryBatch(torch.from_numpy(z).float(), motion_between(pose[:, :-1], pose[:, 1:]), lively)
