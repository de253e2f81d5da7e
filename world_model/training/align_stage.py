"""Stage `align`: how far is what the map shows from what was really seen?

The map stays as it is, or what is held in memory. It is read from poses that are off by anything between a
map unit and a corridor's width, and the `Aligner` learns to tell by how much from the two latents.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from world_model.data.dataset import LatentDataset
from world_model.data.remembered import Held
from world_model.model import WorldModel
from world_model.place import compose, motion_between, wrap
from world_model.precision import mixed_precision
from world_model.settle import UNIT, Aligner
from world_model.training.dynamics_stage import own_views

FRAMES, RECALLED = 96, 12
"""Frames of a batch; fewer where each comes with all that is remembered of it."""
OFF = (math.log(0.001), math.log(0.08))
"""Standard deviation of a pose's error, in half extents; twice that in radians (log)."""
NOISE = 0.1
"""Of the latent: a world's own tokenizer is not the last word about a picture."""

Batch = tuple[Tensor, Tensor, Tensor, Held | None]


class AlignStage:
    """Trains the `Aligner` by the likelihood of the true motion under what it tells."""

    name = "align"

    def __init__(self, world: WorldModel, data: LatentDataset, held_out: LatentDataset, device: str) -> None:
        assert world.aligner is not None, "this world has no sense of place"
        self.device = torch.device(device)
        self._dynamics = world.dynamics.requires_grad_(False)
        self._data, self._held_out = data, held_out
        self.model: nn.Module = world.aligner.requires_grad_(True)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._aligner: Aligner = world.aligner

    def batch(self, rng: np.random.Generator, done: float) -> Batch:
        return _draw(self._data, rng, FRAMES if self._dynamics.place is not None else RECALLED)

    def loss(self, batch: Batch, done: float) -> tuple[Tensor, dict[str, float]]:
        miss, truth, log_variance = self._tell(batch)
        scaled = miss / miss.new_tensor(UNIT)
        likelihood = 0.5 * (scaled.square() * (-log_variance).exp() + log_variance).mean()
        # Likelihood alone learns slowly from what it holds to be hopeless.
        straight = torch.nn.functional.smooth_l1_loss(scaled, torch.zeros_like(scaled), beta=0.3)
        away, before = miss[:, :2].norm(dim=1), truth[:, :2].norm(dim=1)
        return likelihood + straight, {"left": (away.median() / before.median()).item()}

    def _tell(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        z, pose, near = (x.to(self.device) for x in batch[:3])
        held = None if batch[3] is None else batch[3].to(self.device)
        truth = motion_between(near, pose)
        with mixed_precision(self.device.type):
            seen = self._seen(near, held)[:, : z.shape[1]]
            told = self._aligner(
                z + NOISE * torch.rand(len(z), 1, 1, 1, device=z.device) * torch.randn_like(z), seen
            )
        miss = told.motion - truth
        return torch.cat((miss[:, :2], wrap(miss[:, 2:])), 1), truth, told.log_variance

    @torch.no_grad()
    def _seen(self, pose: Tensor, held: Held | None) -> Tensor:
        """What the map, or memory, shows from poses (F, 3)."""
        place, recollection = self._dynamics.place, self._dynamics.recollection
        if place is not None:
            seen: Tensor = place.map.seen(pose)
            return seen
        views = own_views(self._dynamics, held, forgotten=0.0)
        assert recollection is not None and views is not None
        return recollection.seen(views, pose)

    @torch.no_grad()
    def preview(self, path: Path) -> dict[str, float]:
        """What is left of an error of 2, 8 and 32 thousandths of the map after one and after four looks."""
        rng = np.random.default_rng(0)
        scores = {}
        for off in (0.005, 0.02, 0.06):
            z, pose, near, held = _draw(self._held_out, rng, 128, off)
            held = None if held is None else held.to(self.device)
            for look in range(4):
                with mixed_precision(self.device.type):
                    seen = self._seen(near.to(self.device), held)[:, : z.shape[1]]
                    near = compose(near, self._aligner(z.to(self.device), seen).motion.cpu())
                if look in (0, 3):
                    left = (near[:, :2] - pose[:, :2]).norm(dim=1)
                    scores[f"off{off}_look{look + 1}"] = float(left.median())
        return scores


def _draw(data: LatentDataset, rng: np.random.Generator, frames: int, off: float | None = None) -> Batch:
    """Latents z (F, C, h, w), the poses (F, 3) they were seen from, poses near them, and what was held a tick
    before in a world that recalls."""
    lengths = np.array([len(e) for e in data.episodes])
    which = rng.choice(len(lengths), frames, p=lengths / lengths.sum())
    ticks = [int(rng.integers(1, lengths[i] + 1)) for i in which]
    z = np.stack([data.latents[i][t] for i, t in zip(which, ticks, strict=True)])
    poses = [data.pose(i) for i in which]
    pose = np.stack([p[t] for p, t in zip(poses, ticks, strict=True) if p is not None])
    spread = np.exp(rng.uniform(*OFF, (frames, 1))) if off is None else off
    near = pose + spread * np.array([1.0, 1.0, 2.0]) * rng.standard_normal((frames, 3))
    held = data.held([(int(i), t - 1) for i, t in zip(which, ticks, strict=True)], 1)
    return (
        torch.from_numpy(z).float(),
        torch.from_numpy(pose),
        torch.from_numpy(near.astype(np.float32)),
        held,
    )
