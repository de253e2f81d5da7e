"""Stage `recall`: how far walls are, how an action moves the player, and what is remembered of a view.

It takes the part of `place` in worlds that are new every time. Each of its parts learns from single frames,
pairs and short walks, so it sees far more of them than the trunk sees clips.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from world_model.data.dataset import LatentDataset, action_history
from world_model.data.remembered import Held
from world_model.dream import DreamEngine, WorldModel
from world_model.evaluation.metrics import laplacian_energy, psnr
from world_model.place import Place, compose, motion_between, wrap
from world_model.precision import mixed_precision, native_dtype
from world_model.recall import Views
from world_model.recollection import DEPTHS, Recollection, show_what_was_handed
from world_model.tokenizer import laplacian, reconstruction_loss, to_float, to_uint8
from world_model.training.pictures import save_rows
from world_model.training.stride_stage import (
    MOTION_BETA,
    MOTION_ERROR,
    UNKNOWN,
    Steps,
    all_steps,
    coast_loss,
)

FRAMES, PICTURES, WALKS = 64, 4, 16
SURVEYED = 16
"""Pictures in which walls are measured."""
STEPS = 768
"""Single ticks from which the way is learned that one moves where nothing is near."""
TICKS = 16
SOFT_NOISE = 0.1
"""Of pictures as a dream may hold them."""
POSE_ERROR = (math.log(0.0002), math.log(0.002))
"""Range of how far off the pose is from which a picture is remembered, in half extents (log): who is shown a
wall from five units off learns to paint the blur of both."""
WALL_ERROR = 0.02
"""Of the logarithm of what a keyframe tells of its walls."""
LATENT_NOISE = 0.1
EDGE_WEIGHT = 0.1


@dataclass(frozen=True)
class RecallBatch:
    """Frames: z (F, C, h, w), walls (F, columns) the depth in each column. Pictures uint8 (P, H, W, 3), their
    latents (P, C, h, w) and poses (P, 3), and what was held then. Walks: tracks (S, T + 2, 3) of poses, one
    before the start, z (S, T + 1, C, h, w), act and phase (S, T), history (S, HISTORY), what was held.
    Surveyed: pictures uint8 (N, H, W, 3) and the depths (N, columns) in them. Steps: single ticks."""

    z: Tensor
    walls: Tensor
    pictures: NDArray[np.uint8]
    pictured: Tensor
    stand: Tensor
    remembered: Held
    tracks: Tensor
    walk: Tensor
    act: Tensor
    phase: Tensor
    history: Tensor
    held: Held
    surveyed: NDArray[np.uint8]
    survey: Tensor
    steps: Steps


def recollecting(world: WorldModel) -> nn.ModuleDict:
    """What this stage trains: the recollection, and how the decoder paints it."""
    assert world.dynamics.recollection is not None, "this world has a map, or no sense of place at all"
    assert world.tokenizer.decoder.detail is not None
    return nn.ModuleDict(
        {"recollection": world.dynamics.recollection, "painter": world.tokenizer.decoder.detail}
    )


class RecallStage:
    """Trains the parts of `Recollection` side by side."""

    name = "recall"

    def __init__(self, world: WorldModel, data: LatentDataset, held_out: LatentDataset, device: str) -> None:
        self.device = torch.device(device)
        self._world, self._data, self._held_out = world, data, held_out
        self.model: nn.Module = recollecting(world).requires_grad_(True)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        assert world.dynamics.recollection is not None and world.tokenizer.decoder.detail is not None
        self.recollection: Recollection = world.dynamics.recollection
        # The camera is what it is; learned, it makes up for walls that are off.
        self.recollection.spread.requires_grad_(False)
        self._painter = world.tokenizer.decoder.detail
        show_what_was_handed(self._painter.out)
        for layer in (self._painter.enter, self._painter.correct):  # of these the stage `decoder` makes use
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        self._steps, self._held_steps = all_steps(data), all_steps(held_out)
        sample = np.concatenate([z[::100].ravel() for z in data.latents[:20]])
        self._variance = float(sample.astype(np.float32).var())

    def batch(self, rng: np.random.Generator, done: float) -> RecallBatch:
        return _draw(self._data, rng, FRAMES, PICTURES, WALKS, self._steps)

    def loss(self, batch: RecallBatch, done: float) -> tuple[Tensor, dict[str, float]]:
        z, walls = batch.z.to(self.device), batch.walls.to(self.device)
        with mixed_precision(self.device.type):
            told = self.recollection.rangefinder(noised(z))
            ranged = (told - walls.clamp(*DEPTHS).log()).abs().mean()
            x, depths = to_float(batch.surveyed, self.device), batch.survey.to(self.device)
            measured = self.recollection.surveyor.measure(softened(x))
            surveyed = (measured - depths.clamp(*DEPTHS).log()).abs().mean()
            moved = self._walk_loss(batch)
            painted, glanced = self._picture_loss(batch)
        coasted = coast_loss(self.recollection.stride, batch.steps.to(self.device), UNKNOWN)
        metrics = {"paint": painted, "seen": glanced, "range": ranged, "survey": surveyed, "coast": coasted}
        metrics["motion"] = moved
        total = painted + 0.3 * glanced + 0.5 * ranged + 0.5 * surveyed + 0.2 * (moved + coasted)
        return total, {k: v.item() for k, v in metrics.items()}

    def _picture_loss(self, batch: RecallBatch) -> tuple[Tensor, Tensor]:
        """What keyframes show of a picture against the picture and its latent, where they show it."""
        x, z = to_float(batch.pictures, self.device), batch.pictured.to(self.device)
        views = _shaky(batch.remembered.to(self.device).views)
        size = torch.exp(torch.empty(len(z), 1, device=self.device).uniform_(*POSE_ERROR))
        error = size * torch.randn(len(z), 3, device=self.device) * size.new_tensor([1.0, 1.0, 2.0])
        near = compose(batch.stand.to(self.device), error)
        detail = self.recollection.detail(views, near)
        out = self._painter.paint(detail.fine).float()
        known = self._known(views, near)
        out = torch.where(known, out, x)
        painted = reconstruction_loss(out, x) + EDGE_WEIGHT * (laplacian(out) - laplacian(x)).abs().mean()
        seen = self.recollection.seen(views, near)[:, : z.shape[1]]
        share = F.avg_pool2d(known.float(), 16)
        glanced = ((seen - z).square() * share).mean() / share.mean().clamp(min=0.05) / self._variance
        return painted, glanced

    def _known(self, views: Views, pose: Tensor) -> Tensor:
        """(P, 1, H, W), where the keyframes show something."""
        with torch.no_grad():
            known = self.recollection.look(views, pose).known.flatten(0, 1)[:, None].float()
        return F.interpolate(known, scale_factor=4) > 0.5

    def _walk_loss(self, batch: RecallBatch) -> Tensor:
        """Dead reckoning over a stretch."""
        tracks, act, phase = (t.to(self.device) for t in (batch.tracks, batch.act, batch.phase))
        z = batch.walk.to(self.device)
        held = batch.held.to(self.device)
        with torch.no_grad():  # walls as it sees them: it has to know how far to trust them
            views = self.recollection.own(held.views, held.z)
        start = tracks[:, 1]
        place = Place(start, motion_between(tracks[:, 0], start), start * 0, batch.history.to(self.device))
        unit = torch.tensor(MOTION_ERROR, device=self.device)
        moved = torch.zeros((), device=self.device)
        for t in range(act.shape[1]):
            now = views._replace(held=views.held[:, t : t + 1])
            now = self.recollection.felt(now, place, z[:, t])
            place = self.recollection.move(place, act[:, t], phase[:, t], now)
            truth = motion_between(tracks[:, t + 1], tracks[:, t + 2])
            own = (place.motion - truth) / unit
            away = place.pose - tracks[:, t + 2]
            away = torch.cat((away[:, :2], wrap(away[:, 2:])), 1) / unit
            moved = moved + F.smooth_l1_loss(own, torch.zeros_like(own), beta=MOTION_BETA)
            moved = moved + 0.3 * F.smooth_l1_loss(away, torch.zeros_like(away), beta=MOTION_BETA)
        return moved / act.shape[1]

    @torch.no_grad()
    def preview(self, path: Path) -> dict[str, float]:
        """Real frames above what memory alone shows from their poses, gray where it knows nothing."""
        batch = _draw(self._held_out, np.random.default_rng(0), 64, 32, 32, self._held_steps, ticks=32)
        views = self.recollection.own(batch.remembered.views, batch.remembered.z)
        with mixed_precision(self.device.type):
            detail = self.recollection.detail(views, batch.stand)
            shown = to_uint8(self._painter.paint(detail.fine).clamp(-1, 1))
            told = self.recollection.rangefinder(batch.z)
            measured = self.recollection.surveyor.measure(to_float(batch.surveyed, self.device))
            seen = self.recollection.seen(views, batch.stand)
        known = self._known(views, batch.stand)[:, 0].numpy()
        real = batch.pictures
        save_rows(path, [list(part[i : i + 8]) for i in (0, 8, 16) for part in (real, shown)], shrink=2)
        share = known.reshape(len(known), -1).mean(1)
        full = share >= min(0.9, float(np.median(share)))
        glance = DreamEngine(self._world, native_dtype(self.device.type)).decode(seen[:, : batch.z.shape[1]])
        pairs = [(a, b) for a, b, ok in zip(shown, real, full, strict=True) if ok]
        glanced = [psnr(a, b) for a, b, ok in zip(glance, real, full, strict=True) if ok]
        scores = {
            "known": float(known.mean()),
            "memory_psnr": float(np.mean([psnr(a, b) for a, b in pairs])),
            "memory_sharp": sum(laplacian_energy(a) for a, _ in pairs)
            / sum(laplacian_energy(b) for _, b in pairs),
            "glance_psnr": float(np.mean(glanced)),
            "range_percent": 100 * float((told - batch.walls.clamp(*DEPTHS).log()).abs().median()),
            "survey_percent": 100 * float((measured - batch.survey.clamp(*DEPTHS).log()).abs().median()),
            "coast": float(coast_loss(self.recollection.stride, batch.steps.to(self.device), 0.0)),
        }
        return scores | self._walked(batch)

    def _walked(self, batch: RecallBatch) -> dict[str, float]:
        """How far off a dreamed walk is at its end."""
        views = self.recollection.own(batch.held.views, batch.held.z)
        start, ticks = batch.tracks[:, 1], batch.act.shape[1]
        place = Place(start, motion_between(batch.tracks[:, 0], start), start * 0, batch.history)
        for t in range(ticks):
            now = self.recollection.felt(
                views._replace(held=views.held[:, t : t + 1]), place, batch.walk[:, t]
            )
            place = self.recollection.move(place, batch.act[:, t], batch.phase[:, t], now)
        miss = (place.pose[:, :2] - batch.tracks[:, -1, :2]).norm(dim=1) * self._world.config.pose_scale
        turned = wrap(place.pose[:, 2] - batch.tracks[:, -1, 2]).abs().rad2deg()
        return {f"walk{ticks}_units": float(miss.mean()), f"walk{ticks}_degrees": float(turned.mean())}


def _shaky(views: Views) -> Views:
    """The game's own depths, as imperfect as a rangefinder's."""
    return views._replace(wall=views.wall * torch.exp(WALL_ERROR * torch.randn_like(views.wall)))


def softened(x: Tensor) -> Tensor:
    """Pictures as sharp as they are, as soft as dreams become, or between."""
    soft = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear")
    much = torch.rand(len(x), 1, 1, 1, device=x.device)
    return x + much * (soft - x + SOFT_NOISE * torch.randn_like(x))


def noised(z: Tensor) -> Tensor:
    return z + LATENT_NOISE * torch.rand(len(z), 1, 1, 1, device=z.device) * torch.randn_like(z)


def _draw(
    data: LatentDataset,
    rng: np.random.Generator,
    frames: int,
    pictures: int,
    walks: int,
    steps: Steps,
    ticks: int = TICKS,
) -> RecallBatch:
    lengths = np.array([len(e) for e in data.episodes])

    def draw(count: int, first: int, last: int) -> list[tuple[int, int]]:
        which = rng.choice(len(lengths), count, p=lengths / lengths.sum())
        return [(int(i), int(rng.integers(first, lengths[i] - last + 1))) for i in which]

    single, shown, begun = draw(frames, 0, 0), draw(pictures, 0, 1), draw(walks, 1, ticks)
    surveyed = draw(SURVEYED, 0, 0)
    some = torch.from_numpy(rng.integers(0, len(steps.act), STEPS))
    poses = [p for p in map(data.pose, range(len(lengths))) if p is not None]
    remembered, held = data.held(shown, 1), data.held(begun, ticks, pictures=False)
    assert remembered is not None and held is not None
    return RecallBatch(
        torch.from_numpy(np.stack([data.latents[i][t] for i, t in single])).float(),
        torch.from_numpy(np.stack([data.remembered.walls(i, t) for i, t in single])),
        np.stack([data.episodes[i].frames[t + 1] for i, t in shown]),
        torch.from_numpy(np.stack([data.latents[i][t + 1] for i, t in shown])).float(),
        torch.from_numpy(np.stack([poses[i][t + 1] for i, t in shown])),
        remembered,
        torch.from_numpy(np.stack([poses[i][s - 1 : s + ticks + 1] for i, s in begun])),
        torch.from_numpy(np.stack([data.latents[i][s : s + ticks + 1] for i, s in begun])).float(),
        torch.from_numpy(np.stack([data.episodes[i].actions[s : s + ticks] for i, s in begun]).astype(int)),
        torch.from_numpy(np.stack([data.episodes[i].phases[s : s + ticks] for i, s in begun]).astype(int)),
        torch.from_numpy(np.stack([action_history(data.episodes[i].actions, s) for i, s in begun])),
        held,
        np.stack([data.episodes[i].frames[t] for i, t in surveyed]),
        torch.from_numpy(np.stack([data.remembered.walls(i, t) for i, t in surveyed])),
        Steps(*(part[some] for part in steps)),
    )
