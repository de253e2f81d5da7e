"""Where does the dream think it is? A small regressor from real frames to pose, applied to dreams."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from world_model.evaluation.protocol import Clip, Dreamer, batched, dream
from world_model.evaluation.stats import mean_interval
from world_model.evaluation.windows import held_out
from world_model.types import DataError

SIZE = (40, 64)
"""Rows and columns that the probe sees."""

PROBE_TICKS = (0, 1, 4, 8, 16, 32, 64, 128, 256)


class PoseProbe(nn.Module):
    """uint8 pictures (N, H, W, 3) to x, y (standardised) and the cosine and sine of the heading (N, 4)."""

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        layers: list[nn.Module] = []
        for i, o in ((3, 16), (16, 32), (32, 64)):
            layers += [nn.Conv2d(i, o, 3, stride=2, padding=1), nn.GroupNorm(4, o), nn.SiLU()]
        self.net = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(64 * 5 * 8, 128), nn.SiLU(), nn.Linear(128, 4)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out

    @torch.no_grad()
    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Pose (N, 3): x, y in map units and heading in radians."""
        out = self(shrink(images))
        place = out[:, :2] * self.scale + self.mean
        heading = torch.atan2(out[:, 3], out[:, 2])
        return torch.cat([place, heading[:, None]], 1).double().numpy()


def shrink(images: NDArray[np.uint8]) -> Tensor:
    """uint8 (N, H, W, 3) to float (N, 3, 40, 64) in -1 to 1."""
    x = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float()
    return F.adaptive_avg_pool2d(x, SIZE) / 127.5 - 1


def train_probe(
    root: Path, frames: int = 8000, steps: int = 1500, seed: int = 0, split: str = "train"
) -> PoseProbe:
    """Trains on real frames spread evenly over a split (default: training episodes, never the held-out).

    Raises DataError without episodes or without pose.
    """
    images, poses = _frames_of(root, split, frames)
    place = torch.from_numpy(poses[:, :2]).float()
    heading = torch.from_numpy(poses[:, 2]).float()
    target_mean, target_scale = place.mean(0), place.std(0).clamp(min=1.0)
    target = torch.cat(
        [(place - target_mean) / target_scale, heading.cos()[:, None], heading.sin()[:, None]], 1
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe = PoseProbe(target_mean, target_scale)
    optimiser = torch.optim.AdamW(probe.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        pick = torch.from_numpy(rng.integers(len(images), size=64))
        loss = F.smooth_l1_loss(probe(images[pick]), target[pick], beta=0.1)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return probe.eval()


def path_error(dreamer: Dreamer, probe: PoseProbe, clips: Sequence[Clip], batch: int = 16) -> dict[str, Any]:
    """Error of the imagined path against the recorded pose, by tick.

    distance: map units; degrees: absolute heading error; means with intervals, and medians, since a few
    views that fit many places make most of the mean. `real` is the same probe on the real frames of
    the same ticks: what the probe itself gets wrong, below which a dream cannot be told apart.
    """
    if any(c.pose is None for c in clips):
        raise DataError("the held-out episodes have no pose, so a probe has nothing to be compared with")
    rows: dict[int, list[NDArray[np.float64]]] = {}
    for group in batched(clips, batch):
        for k, images in enumerate(dream(dreamer, group, painted=PROBE_TICKS)):
            if k in PROBE_TICKS:
                true = np.stack([c.pose[c.context - 1 + k] for c in group if c.pose is not None])
                real = np.stack([c.real(k) for c in group])
                found = [_errors(probe.predict(i), true) for i in (images, real)]
                rows.setdefault(k, []).append(np.concatenate(found, 1))
    names = [c.episode for c in clips]
    result = {}
    for k, parts in rows.items():
        columns = np.concatenate(parts).T
        values = [
            mean_interval(column, names) | {"median": round(float(np.median(column)), 4)}
            for column in columns
        ]
        result[str(k)] = {
            "distance": values[0],
            "degrees": values[1],
            "real": {"distance": values[2], "degrees": values[3]},
        }
    return result


def _frames_of(root: Path, split: str, count: int) -> tuple[Tensor, NDArray[np.float32]]:
    data = held_out(root, split)
    stride = max(1, sum(len(e.frames) for e in data.episodes) // count)
    images, poses = [], []
    for episode in data.episodes:
        if episode.pose is None:
            raise DataError(f"the {split} episodes have no pose, so no probe can be trained")
        images.append(shrink(np.asarray(episode.frames[::stride])))
        poses.append(np.asarray(episode.pose[::stride]))
    return torch.cat(images), np.concatenate(poses)


def _errors(found: NDArray[np.float64], true: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N, 2): distance in map units and heading error in degrees."""
    distance = np.hypot(*(found[:, :2] - true[:, :2]).T)
    turn = np.abs(np.remainder(found[:, 2] - true[:, 2] + np.pi, 2 * np.pi) - np.pi)
    return np.stack([distance, np.degrees(turn)], 1)
