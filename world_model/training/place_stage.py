"""Stage `place`: where a picture was taken, how an action moves the player, what is seen from where.

Single frames and sequences of poses are all it needs, so it runs through hundreds of thousands of
examples in the time in which the trunk sees thousands of clips.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from world_model.config import view_rows
from world_model.data.dataset import LatentDataset, action_history, lively
from world_model.dream import DreamEngine
from world_model.evaluation.metrics import laplacian_energy, psnr
from world_model.field import FREE, march_steps
from world_model.model import WorldModel
from world_model.place import Place, PlaceModel, motion_between, wrap
from world_model.precision import mixed_precision, native_dtype
from world_model.tokenizer import laplacian, reconstruction_loss, to_float, to_uint8
from world_model.training.pictures import save_rows

FRAMES = 192
GLANCES = 32
PICTURES = 8
SEQUENCES = 192
TICKS = 16
MOTION_ERROR = (0.002, 0.002, 0.01)
"""Unit of the motion loss: about one map unit, half a degree."""
WALL_WEIGHT, EDGE_WEIGHT = 20.0, 0.1


@dataclass(frozen=True)
class PlaceBatch:
    """z (F, C, h, w) with pose (F, 3) of single frames; pictures uint8 (P, H, W, 3) with stand (P, 3), the
    poses they were taken from, depth (P, 4 h, 4 w) in half extents, and where things stand before the map
    (P, H, W); tracks (S, T + 2, 3) of poses, one
    before the start, with act, phase (S, T) and history (S, HISTORY)."""

    z: Tensor
    pose: Tensor
    pictures: NDArray[np.uint8]
    stand: Tensor
    depth: Tensor
    lively: NDArray[np.bool_]
    tracks: Tensor
    act: Tensor
    phase: Tensor
    history: Tensor


def map_making(world: WorldModel) -> nn.ModuleDict:
    """What this stage trains: the sense of place, and how the decoder paints its detail."""
    assert world.dynamics.place is not None, "this world's source tells no poses or no depth"
    assert world.tokenizer.decoder.detail is not None
    return nn.ModuleDict({"place": world.dynamics.place, "painter": world.tokenizer.decoder.detail})


class PlaceStage:
    """Trains the three parts of `PlaceModel` side by side."""

    name = "place"

    def __init__(self, world: WorldModel, data: LatentDataset, held_out: LatentDataset, device: str) -> None:
        self.device = torch.device(device)
        self._world, self._data, self._held_out = world, data, held_out
        self.model: nn.Module = map_making(world).requires_grad_(True)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        assert world.dynamics.place is not None and world.tokenizer.decoder.detail is not None
        self.place: PlaceModel = world.dynamics.place
        self._feels = world.dynamics.stride is None  # a stride has a stage of its own
        self._painter = world.tokenizer.decoder.detail
        self._poses = [p for p in map(data.pose, range(len(data.episodes))) if p is not None]
        self._variance = float(
            np.concatenate([z[::100].ravel() for z in data.latents[:20]]).astype(np.float32).var()
        )

    def batch(self, rng: np.random.Generator, done: float) -> PlaceBatch:
        view = view_rows(self._world.config)
        return _draw(self._data, self._poses, rng, FRAMES, PICTURES, SEQUENCES, view)

    def loss(self, batch: PlaceBatch, done: float) -> tuple[Tensor, dict[str, float]]:
        z, pose = batch.z.to(self.device), batch.pose.to(self.device)
        with mixed_precision(self.device.type):
            seen = self.place.map.seen(pose[:GLANCES])[:, : z.shape[1]]
            glanced = (seen - z[:GLANCES]).square().mean() / self._variance
            # Noise stands in for the imperfect latents of a dream, which `look` may be shown too.
            sight = self.place.localizer(z + 0.1 * torch.randn_like(z))
            sighted, metrics = _sight_loss(sight.pose, sight.direction, sight.log_variance, pose)
            moved = self._motion_loss(batch) if self._feels else z.new_zeros(())
            painted, more = self._picture_loss(batch)
        metrics |= more | {"seen": glanced.item(), "sight": sighted.item(), "motion": moved.item()}
        return painted + 0.3 * glanced + 0.1 * sighted + 0.2 * moved, metrics

    def _picture_loss(self, batch: PlaceBatch) -> tuple[Tensor, dict[str, float]]:
        """What the map's detail alone paints against the picture, and its walls against the depth."""
        x = to_float(batch.pictures, self.device)
        stand, depth = batch.stand.to(self.device), batch.depth.to(self.device)
        detail = self.place.map.detail(stand)
        out = self._painter.paint(detail.fine).float()
        covered = torch.from_numpy(batch.lively).to(self.device)[:, None]
        out = torch.where(covered, x, out)  # what moves is not the map's, nor is a status bar
        painted = reconstruction_loss(out, x) + EDGE_WEIGHT * (laplacian(out) - laplacian(x)).abs().mean()
        walls = self._wall_loss(stand, depth)
        return painted + WALL_WEIGHT * walls, {"paint": painted.item(), "walls": walls.item()}

    def _wall_loss(self, stand: Tensor, depth: Tensor) -> Tensor:
        """Along each column at eye height the signed distance is what is left of the way to the wall.

        Truncated, as in volumetric fusion (Curless and Levoy, 1996): views from many sides average to the
        wall's place far more finely than any one depth is told.
        """
        surfaces = self.place.map.surfaces
        steps = march_steps(stand.device)
        steps = steps + (steps.roll(-1) - steps).clamp(min=0) * torch.rand_like(steps)
        horizon = depth[:, int(depth.shape[1] * surfaces.horizon)]
        left = horizon[..., None] - steps
        told = (left > -FREE).float()
        miss = surfaces.march(stand, steps, horizon.shape[1]) - left.clamp(-FREE, FREE)
        return (miss.abs() * told).sum() / told.sum().clamp(min=1)

    def _motion_loss(self, batch: PlaceBatch) -> Tensor:
        """Dead reckoning over a stretch: the loss counts where each tick ends, so errors must not add up."""
        tracks, act, phase = (t.to(self.device) for t in (batch.tracks, batch.act, batch.phase))
        unit = torch.tensor(MOTION_ERROR, device=self.device)
        start = tracks[:, 1]
        place = Place(start, motion_between(tracks[:, 0], start), start * 0, batch.history.to(self.device))
        total = torch.zeros((), device=self.device)
        for t in range(act.shape[1]):
            place = self.place.move(place, act[:, t], phase[:, t])
            truth = tracks[:, t + 2]
            miss = place.pose - truth
            own = place.motion - motion_between(tracks[:, t + 1], truth)
            total = total + F.smooth_l1_loss(own / unit, torch.zeros_like(own))
            miss = torch.cat((miss[:, :2], wrap(miss[:, 2:])), 1)
            total = total + 0.3 * F.smooth_l1_loss(miss / unit, torch.zeros_like(miss))
        return total / act.shape[1]

    @torch.no_grad()
    def preview(self, path: Path) -> dict[str, float]:
        """Real frames above what the map alone shows from their poses; errors in map units and degrees."""
        rng = np.random.default_rng(0)
        poses = [p for p in map(self._held_out.pose, range(len(self._held_out.episodes))) if p is not None]
        walk = min(128, *(len(e) - 2 for e in self._held_out.episodes))
        batch = _draw(self._held_out, poses, rng, 64, 64, 64, ticks=walk)
        engine = DreamEngine(self._world, native_dtype(self.device.type))
        real, shown = batch.pictures, self._paint(batch.stand)
        glanced = engine.decode(self.place.map.seen(batch.pose)[:, : batch.z.shape[1]])
        latents = engine.decode(batch.z)
        save_rows(path, [list(part[i : i + 8]) for i in (0, 8, 16) for part in (real, shown)], shrink=2)
        sight = self.place.localizer(batch.z)
        units = self._world.config.pose_scale
        away = (sight.pose[:, :2] - batch.pose[:, :2]).norm(dim=1) * units
        turned = wrap(sight.pose[:, 2] - batch.pose[:, 2]).abs().rad2deg()
        place = Place(
            batch.tracks[:, 1],
            motion_between(batch.tracks[:, 0], batch.tracks[:, 1]),
            batch.pose * 0,
            batch.history,
        )
        scores = {
            "map_psnr": float(np.mean([psnr(a, b) for a, b in zip(real, shown, strict=True)])),
            "view_tangent": float(self.place.map.surfaces.spread),
            "map_sharp": sum(map(laplacian_energy, shown)) / sum(map(laplacian_energy, real)),
            "glance_psnr": float(np.mean([psnr(a, b) for a, b in zip(latents, glanced, strict=True)])),
            "sight_units": float(away.median()),
            "sight_degrees": float(turned.median()),
        }
        for t in range(walk):
            place = self.place.move(place, batch.act[:, t], batch.phase[:, t])
            if t + 1 in (8, 32, 128):
                miss = (place.pose[:, :2] - batch.tracks[:, t + 2, :2]).norm(dim=1) * units
                scores[f"walk{t + 1}_units"] = float(miss.mean())
                turn = wrap(place.pose[:, 2] - batch.tracks[:, t + 2, 2]).abs().rad2deg()
                scores[f"walk{t + 1}_degrees"] = float(turn.mean())
        return scores

    def _paint(self, stand: Tensor) -> NDArray[np.uint8]:
        with mixed_precision(self.device.type):
            parts = [self._painter.paint(self.place.map.detail(p).fine) for p in stand.split(16)]
        return to_uint8(torch.cat(parts).clamp(-1, 1))


def _sight_loss(
    pose: Tensor, direction: Tensor, log_variance: Tensor, truth: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """Gaussian likelihood with predicted variance, and the direction as a unit vector."""
    miss = pose - truth
    miss = torch.cat((miss[:, :2], wrap(miss[:, 2:])), 1)
    likelihood = 0.5 * (miss.square() * (-log_variance).exp() + log_variance).mean()
    aim = torch.stack((truth[:, 2].cos(), truth[:, 2].sin()), 1)
    straight = F.smooth_l1_loss(pose[:, :2] / 0.05, truth[:, :2] / 0.05)
    straight = straight + F.smooth_l1_loss(direction / 0.1, aim / 0.1)
    return likelihood + straight, {"miss": miss[:, :2].norm(dim=1).mean().item()}


def _draw(
    data: LatentDataset,
    poses: list[np.ndarray],
    rng: np.random.Generator,
    frames: int,
    pictures: int,
    sequences: int,
    view: int | None = None,
    ticks: int = TICKS,
) -> PlaceBatch:
    lengths = np.array([len(e) for e in data.episodes])
    which = rng.choice(len(lengths), frames, p=lengths / lengths.sum())
    ticks_at = [int(rng.integers(0, lengths[i] + 1)) for i in which]
    z = np.stack([data.latents[i][t] for i, t in zip(which, ticks_at, strict=True)])
    pose = np.stack([poses[i][t] for i, t in zip(which, ticks_at, strict=True)])
    tracks_of = rng.choice(len(lengths), sequences, p=lengths / lengths.sum())
    starts = [int(rng.integers(1, lengths[i] - ticks + 1)) for i in tracks_of]
    shown = [(data.episodes[i], int(t)) for i, t in zip(which[:pictures], ticks_at, strict=False)]
    pairs = list(zip(tracks_of, starts, strict=True))
    return PlaceBatch(
        torch.from_numpy(z).float(),
        torch.from_numpy(pose),
        np.stack([e.frames[t] for e, t in shown]),
        torch.from_numpy(pose[:pictures]),
        torch.from_numpy(np.stack([data.depth(e, t) for e, t in shown])),
        np.stack([lively(e, t, view) for e, t in shown]),
        torch.from_numpy(np.stack([poses[i][s - 1 : s + ticks + 1] for i, s in pairs])),
        torch.from_numpy(
            np.stack([data.episodes[i].actions[s : s + ticks] for i, s in pairs]).astype(np.int64)
        ),
        torch.from_numpy(
            np.stack([data.episodes[i].phases[s : s + ticks] for i, s in pairs]).astype(np.int64)
        ),
        torch.from_numpy(np.stack([action_history(data.episodes[i].actions, s) for i, s in pairs])),
    )
