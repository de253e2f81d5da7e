"""Stage `stride`: how an action moves the player where nothing is near, in very many very small steps.

Errors of a stride add up for as long as a dream lasts, and nothing corrects them. What it learns hangs on
numbers alone, so it can see every tick of the data many times in minutes. It walks by its own last motion, as
in a dream: who learns single ticks alone learns a momentum that grows.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from world_model.data.dataset import LatentDataset
from world_model.model import WorldModel
from world_model.place import HISTORY, Place, Stride, compose, motion_between, wrap

MOTION_ERROR = (0.002, 0.002, 0.01)
"""Unit of the motion loss: about one map unit, half a degree."""
MOTION_BETA = 0.1
"""Of these units. Errors above it cost by their size: a tick against a wall must not rule the others."""
UNKNOWN = 0.1
"""Part of the ticks of which fewer past actions are known than usual."""
WALKS, TICKS = 256, 16
HINDERED = 1.0
"""Error of a tick, in the unit of the loss, from which on something is in the way: the walk ends there."""


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
    assert world.dynamics.stride is not None, "this world has no stride"
    return nn.ModuleDict({"gait": world.dynamics.stride.gait})


class StrideStage:
    """Trains the stride."""

    name = "stride"

    def __init__(self, world: WorldModel, data: LatentDataset, held_out: LatentDataset, device: str) -> None:
        self.device = torch.device(device)
        world.requires_grad_(False)
        self.model: nn.Module = striding(world).requires_grad_(True)
        assert world.dynamics.stride is not None
        self._stride = world.dynamics.stride
        self._units = world.config.pose_scale
        self._steps, self._held_steps = all_steps(data), all_steps(held_out)
        self._starts = _starts(self._steps)

    def batch(self, rng: np.random.Generator, done: float) -> Steps:
        first = self._starts[torch.from_numpy(rng.integers(0, len(self._starts), WALKS))]
        return _walks(self._steps, first)

    def loss(self, batch: Steps, done: float) -> tuple[Tensor, dict[str, float]]:
        batch = batch.to(self.device)
        tick = tick_loss(self._stride, Steps(*(part.flatten(0, 1) for part in batch)), UNKNOWN)
        walked = walk_loss(self._stride, batch)
        return tick + walked, {"tick": tick.item(), "walked": walked.item()}

    @torch.no_grad()
    def preview(self, path: Path) -> dict[str, float]:
        """Median errors of a tick, in map units and degrees; mean tick of walks, in units of the loss."""
        held, steps = self._held_steps, self._held_steps.to(self.device)
        walks = _walks(held, _starts(held)[::TICKS]).to(self.device)
        miss = self._stride(steps.place, steps.act, steps.phase) - steps.motion
        return {
            "units": self._units * float(miss[:, :2].norm(dim=1).median()),
            "degrees": float(miss[:, 2].abs().rad2deg().median()),
            "walked": float(walk_loss(self._stride, walks)),
        }


def _starts(steps: Steps) -> Tensor:
    """Where walks of `TICKS` ticks can begin."""
    first = torch.arange(len(steps.act) - TICKS + 1)
    return first[steps.at[first, 0] == steps.at[first + TICKS - 1, 0]]


def _walks(steps: Steps, first: Tensor) -> Steps:
    """The ticks of walks: (W, TICKS, ...)."""
    index = first[:, None] + torch.arange(TICKS)
    return Steps(*(part[index] for part in steps))


def walk_loss(stride: Stride, walks: Steps) -> Tensor:
    """Mean error of the motion and of the place, tick by tick, of walks by one's own last motion."""
    unit = walks.motion.new_tensor(MOTION_ERROR)
    with torch.no_grad():
        told = stride(walks.place, walks.act, walks.phase)
        free = (((told - walks.motion) / unit).abs().amax(-1) < HINDERED).float().cumprod(1)
    motion, total = walks.last[:, 0], torch.zeros((), device=unit.device)
    own = real = torch.zeros_like(motion)
    for t in range(walks.act.shape[1]):
        place = Place(motion * 0, motion, motion * 0, walks.history[:, t])
        motion = stride(place, walks.act[:, t], walks.phase[:, t])
        own, real = compose(own, motion), compose(real, walks.motion[:, t])
        away = torch.cat(((own - real)[:, :2], wrap((own - real)[:, 2:])), 1)
        miss = (motion - walks.motion[:, t]).abs() + 0.3 * away.abs()
        total = total + (miss / unit).mean(-1) @ free[:, t]
    return total / free.sum().clamp(min=1)


def tick_loss(stride: Stride, steps: Steps, unknown: float) -> Tensor:
    """Mean error of single ticks. A stride knows no walls: near most ticks there are none."""
    device = steps.act.device
    count = (len(steps.act), 1)
    known = torch.randint(0, HISTORY, count, device=device)
    known = torch.where(torch.rand(count, device=device) < unknown, known, HISTORY)
    newest = torch.arange(HISTORY, 0, -1, device=device)
    steps = steps._replace(history=torch.where(newest <= known, steps.history, -1))
    miss = stride(steps.place, steps.act, steps.phase) - steps.motion
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
