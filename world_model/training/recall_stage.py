"""Stage `recall`: how far walls are, and what is remembered of a view.

It takes the part of `place` in worlds that are new every time. Each of its parts learns from single frames,
so it sees far more of them than the trunk sees clips.
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

from world_model.data.dataset import LatentDataset
from world_model.data.remembered import Held
from world_model.dream import DreamEngine
from world_model.evaluation.metrics import laplacian_energy, psnr
from world_model.model import WorldModel
from world_model.place import compose
from world_model.precision import mixed_precision, native_dtype
from world_model.recall import Views
from world_model.recollection import DEPTHS, Recollection, show_what_was_handed
from world_model.tokenizer import laplacian, reconstruction_loss, to_float, to_uint8
from world_model.training.pictures import save_rows

FRAMES, PICTURES = 64, 4
SURVEYED = 16
"""Pictures in which walls are measured."""
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
    latents (P, C, h, w) and poses (P, 3), and what was held then. Surveyed: pictures uint8 (N, H, W, 3) and
    the depths (N, columns) in them."""

    z: Tensor
    walls: Tensor
    pictures: NDArray[np.uint8]
    pictured: Tensor
    stand: Tensor
    remembered: Held
    surveyed: NDArray[np.uint8]
    survey: Tensor


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
        assert self._painter.enter is not None, "what recalls does not blend"
        for layer in (self._painter.enter, self._painter.correct):  # of these the stage `decoder` makes use
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        sample = np.concatenate([z[::100].ravel() for z in data.latents[:20]])
        self._variance = float(sample.astype(np.float32).var())

    def batch(self, rng: np.random.Generator, done: float) -> RecallBatch:
        return _draw(self._data, rng, FRAMES, PICTURES)

    def loss(self, batch: RecallBatch, done: float) -> tuple[Tensor, dict[str, float]]:
        z, walls = batch.z.to(self.device), batch.walls.to(self.device)
        with mixed_precision(self.device.type):
            told = self.recollection.rangefinder(noised(z))
            ranged = (told - walls.clamp(*DEPTHS).log()).abs().mean()
            x, depths = to_float(batch.surveyed, self.device), batch.survey.to(self.device)
            measured = self.recollection.surveyor.measure(softened(x))
            surveyed = (measured - depths.clamp(*DEPTHS).log()).abs().mean()
            painted, glanced = self._picture_loss(batch)
        metrics = {"paint": painted, "seen": glanced, "range": ranged, "survey": surveyed}
        total = painted + 0.3 * glanced + 0.5 * ranged + 0.5 * surveyed
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

    @torch.no_grad()
    def preview(self, path: Path) -> dict[str, float]:
        """Real frames above what memory alone shows from their poses, gray where it knows nothing."""
        batch = _draw(self._held_out, np.random.default_rng(0), 64, 32)
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
        return {
            "known": float(known.mean()),
            "memory_psnr": float(np.mean([psnr(a, b) for a, b in pairs])),
            "memory_sharp": sum(laplacian_energy(a) for a, _ in pairs)
            / sum(laplacian_energy(b) for _, b in pairs),
            "glance_psnr": float(np.mean(glanced)),
            "range_percent": 100 * float((told - batch.walls.clamp(*DEPTHS).log()).abs().median()),
            "survey_percent": 100 * float((measured - batch.survey.clamp(*DEPTHS).log()).abs().median()),
        }


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


def _draw(data: LatentDataset, rng: np.random.Generator, frames: int, pictures: int) -> RecallBatch:
    lengths = np.array([len(e) for e in data.episodes])

    def draw(count: int, last: int) -> list[tuple[int, int]]:
        which = rng.choice(len(lengths), count, p=lengths / lengths.sum())
        return [(int(i), int(rng.integers(0, lengths[i] - last + 1))) for i in which]

    single, shown, surveyed = draw(frames, 0), draw(pictures, 1), draw(SURVEYED, 0)
    remembered = data.held(shown, 1)
    assert remembered is not None
    return RecallBatch(
        torch.from_numpy(np.stack([data.latents[i][t] for i, t in single])).float(),
        torch.from_numpy(np.stack([data.remembered.walls(i, t) for i, t in single])),
        np.stack([data.episodes[i].frames[t + 1] for i, t in shown]),
        torch.from_numpy(np.stack([data.latents[i][t + 1] for i, t in shown])).float(),
        data.remembered.stands([(i, t + 1) for i, t in shown]),
        remembered,
        np.stack([data.episodes[i].frames[t] for i, t in surveyed]),
        torch.from_numpy(np.stack([data.remembered.walls(i, t) for i, t in surveyed])),
    )
