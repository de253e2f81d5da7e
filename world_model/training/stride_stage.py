"""Stage `stride`: how an action moves the player where nothing is near, in very many very small steps.

Errors of a stride add up for as long as a dream lasts, and nothing corrects them. What it learns hangs on
numbers alone, so it can see every tick of the data many times in minutes.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from world_model.data.dataset import LatentDataset
from world_model.dream import WorldModel
from world_model.place import HISTORY, Place, motion_between
from world_model.recollection import Stride

MOTION_ERROR = (0.002, 0.002, 0.01)
"""Unit of the motion loss: about one map unit, half a degree."""
MOTION_BETA = 0.1
"""Of these units. Errors above it cost by their size: a tick against a wall must not rule the others."""
UNKNOWN = 0.1
"""Part of the ticks of which fewer past actions are known than usual."""
BATCH = 2048


class Steps(NamedTuple):
    """Single ticks: last (N, 3) the motion before, motion (N, 3), history (N, HISTORY), act, phase (N,), and
    at (N, 2), the episode and the frame from which the motion leads to the next."""

    last: Tensor
    motion: Tensor
    history: Tensor
    act: Tensor
    phase: Tensor
    at: Tensor

    def to(self, device: torch.device) -> Steps:
        return Steps(*(part.to(device) for part in self))

    @property
    def place(self) -> Place:
        """Where each begins, as far as a stride asks."""
        return Place(self.last * 0, self.last, self.last * 0, self.history)


def striding(world: WorldModel) -> nn.ModuleDict:
    """What this stage trains."""
    assert world.dynamics.recollection is not None, "this world has a map, or no sense of place at all"
    return nn.ModuleDict({"free": world.dynamics.recollection.stride.free})


class StrideStage:
    """Trains the part of the stride that knows no walls."""

    name = "stride"

    def __init__(self, world: WorldModel, data: LatentDataset, held_out: LatentDataset, device: str) -> None:
        self.device = torch.device(device)
        world.requires_grad_(False)
        self.model: nn.Module = striding(world).requires_grad_(True)
        assert world.dynamics.recollection is not None
        self._stride = world.dynamics.recollection.stride
        self._units = world.config.pose_scale
        self._steps, self._held_steps = all_steps(data), all_steps(held_out)

    def batch(self, rng: np.random.Generator, done: float) -> Steps:
        some = torch.from_numpy(rng.integers(0, len(self._steps.act), BATCH))
        return Steps(*(part[some] for part in self._steps))

    def loss(self, batch: Steps, done: float) -> tuple[Tensor, dict[str, float]]:
        loss = coast_loss(self._stride, batch.to(self.device), UNKNOWN)
        return loss, {"coast": loss.item()}

    @torch.no_grad()
    def preview(self, path: Path) -> dict[str, float]:
        """Median errors of a tick, in map units and degrees."""
        steps = self._held_steps.to(self.device)
        miss = self._stride.coast(steps.place, steps.act, steps.phase) - steps.motion
        return {
            "units": self._units * float(miss[:, :2].norm(dim=1).median()),
            "degrees": float(miss[:, 2].abs().rad2deg().median()),
        }


def coast_loss(stride: Stride, steps: Steps, unknown: float) -> Tensor:
    """Mean error of single ticks by the stride that knows no walls: near most there are none."""
    device = steps.act.device
    count = (len(steps.act), 1)
    known = torch.randint(0, HISTORY, count, device=device)
    known = torch.where(torch.rand(count, device=device) < unknown, known, HISTORY)
    newest = torch.arange(HISTORY, 0, -1, device=device)
    steps = steps._replace(history=torch.where(newest <= known, steps.history, -1))
    miss = stride.coast(steps.place, steps.act, steps.phase) - steps.motion
    return (miss / miss.new_tensor(MOTION_ERROR)).abs().mean()


def all_steps(data: LatentDataset) -> Steps:
    """Every tick of the episodes but their first."""
    parts: list[Steps] = []
    for i, episode in enumerate(data.episodes):
        pose = data.pose(i)
        assert pose is not None
        motion = motion_between(torch.from_numpy(pose[:-1]), torch.from_numpy(pose[1:]))
        actions = torch.from_numpy(np.asarray(episode.actions).astype(np.int64))
        phase = torch.from_numpy(np.asarray(episode.phases).astype(np.int64))
        before = F.pad(actions, (HISTORY, 0), value=-1).unfold(0, HISTORY, 1)
        ticks = torch.arange(1, len(actions))
        at = torch.stack((torch.full_like(ticks, i), ticks), 1)
        parts.append(Steps(motion[:-1], motion[1:], before[1 : len(actions)], actions[1:], phase[1:], at))
    return Steps(*(torch.cat(part) for part in zip(*parts, strict=True)))
