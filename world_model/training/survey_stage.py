"""Stage `survey`: goes on with what single frames teach of a world that recalls, in many small steps.

What memory shows is as true as the walls of its keyframes stand where they are. `recall` trains everything
side by side, and most of a step of it goes into looking; here are the parts that need no look: the walls in
pictures and in latents, and the odometer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from world_model.data.dataset import LatentDataset, action_history
from world_model.model import WorldModel
from world_model.place import Place, motion_between, wrap
from world_model.precision import mixed_precision
from world_model.recollection import DEPTHS
from world_model.tokenizer import to_float
from world_model.training.recall_stage import noised, softened
from world_model.training.stride_stage import MOTION_BETA, MOTION_ERROR, Steps, all_steps

PICTURES, FRAMES, PAIRS = 16, 64, 64
WALKS, WALKED = 32, 32
"""Of the preview, and their ticks."""
MISLED = 0.1
"""Part of the pairs in which no turn is expected: it is not known what the player did before."""


@dataclass(frozen=True)
class SurveyBatch:
    """Pictures uint8 (P, H, W, 3) and latents z (F, C, h, w), each with the depths (..., columns) in them;
    pairs of pictures in a row, before and after, uint8 (N, H, W, 3), and the steps between."""

    pictures: NDArray[np.uint8]
    pictured: Tensor
    z: Tensor
    walls: Tensor
    before: NDArray[np.uint8]
    after: NDArray[np.uint8]
    steps: Steps
    turned: Tensor | None = None
    """What becomes of a motion in the mirror (N, 3), of pairs that are seen in one."""


def surveying(world: WorldModel) -> nn.ModuleDict:
    """What this stage trains."""
    found = world.dynamics.recollection
    assert found is not None, "this world has a map, or no sense of place at all"
    parts = {"surveyor": found.surveyor, "rangefinder": found.rangefinder, "odometer": found.odometer}
    return nn.ModuleDict(parts)


class SurveyStage:
    """Trains surveyor, rangefinder and odometer side by side."""

    name = "survey"

    def __init__(self, world: WorldModel, data: LatentDataset, held_out: LatentDataset, device: str) -> None:
        self.device = torch.device(device)
        self._data, self._held_out, self._units = data, held_out, world.config.pose_scale
        world.requires_grad_(False)
        self.model: nn.Module = surveying(world).requires_grad_(True)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        assert world.dynamics.recollection is not None
        self._recollection = world.dynamics.recollection
        self._steps, self._held_steps = all_steps(data), all_steps(held_out)

    def batch(self, rng: np.random.Generator, done: float) -> SurveyBatch:
        return _draw(self._data, self._steps, rng, PICTURES, FRAMES, PAIRS)

    def loss(self, batch: SurveyBatch, done: float) -> tuple[Tensor, dict[str, float]]:
        batch = varied(batch)
        x, z = to_float(batch.pictures, self.device), batch.z.to(self.device)
        with mixed_precision(self.device.type):
            survey = self._miss(self._recollection.surveyor.measure(softened(x)), batch.pictured).mean()
            ranged = self._miss(self._recollection.rangefinder(noised(z)), batch.walls).mean()
            steered = odometer_loss(*self._pairs(batch, MISLED))
        metrics = {"survey": survey, "range": ranged, "odometer": steered}
        return survey + ranged + steered, {k: v.item() for k, v in metrics.items()}

    def _miss(self, told: Tensor, depth: Tensor) -> Tensor:
        return (told - depth.to(self.device).clamp(*DEPTHS).log()).abs()

    def _pairs(self, batch: SurveyBatch, misled: float) -> tuple[Tensor, Tensor, Tensor]:
        """What the odometer tells of each tick, the truth, and the error (N,) of the way that it expects, in
        units of `MOTION_ERROR`."""
        steps = batch.steps.to(self.device)
        with torch.no_grad():
            turn = self._recollection.stride(steps.place, steps.act, steps.phase)[:, 2]
        mirror = torch.ones(3) if batch.turned is None else batch.turned
        mirror = mirror.to(self.device)
        turn = turn * mirror[..., 2]
        turn = turn * (torch.rand(len(turn), device=self.device) >= misled).float()
        before, after = (
            torch.from_numpy(x).to(self.device).permute(0, 3, 1, 2) for x in (batch.before, batch.after)
        )
        told, error = self._recollection.stepped(before, after, turn)
        unit = told.new_tensor(MOTION_ERROR)
        return told / unit, steps.motion * mirror / unit, error / MOTION_ERROR[0]

    @torch.no_grad()
    def preview(self, path: Path) -> dict[str, float]:
        """Median errors: of walls in per cent, of a tick's way in thousandths of the map."""
        batch = _draw(self._held_out, self._held_steps, np.random.default_rng(0), 64, 64, 256)
        with mixed_precision(self.device.type):
            pictures = to_float(batch.pictures, self.device)
            survey = self._miss(self._recollection.surveyor.measure(pictures), batch.pictured)
            ranged = self._miss(self._recollection.rangefinder(batch.z.to(self.device)), batch.walls)
            told, truth, error = self._pairs(batch, 0.0)
        unit = MOTION_ERROR[0] * 1000
        way = (told - truth)[:, :2].norm(dim=1) * unit
        return {
            "survey_percent": 100 * float(survey.median()),
            "range_percent": 100 * float(ranged.median()),
            "way_median": float(way.median()),
            "way_mean": float(way.mean()),
            "way_expected": unit * float(error.mean()),
        } | self._walked()

    def _walked(self) -> dict[str, float]:
        """How far off a dreamed walk among walls as they are seen is at its end, in map units and degrees."""
        data, rng = self._held_out, np.random.default_rng(0)
        lengths = np.array([len(e) for e in data.episodes])
        which = rng.choice(len(lengths), WALKS, p=lengths / lengths.sum())
        begun = [(int(i), int(rng.integers(1, lengths[i] - WALKED + 1))) for i in which]
        held = data.held(begun, WALKED, pictures=False)
        assert held is not None
        held = held.to(self.device)
        views = self._recollection.own(held.views, held.z)
        episodes = [data.episodes[i] for i, _ in begun]
        poses = [p for p in map(data.pose, range(len(lengths))) if p is not None]
        tracks = torch.from_numpy(np.stack([poses[i][s - 1 : s + WALKED + 1] for i, s in begun])).to(
            self.device
        )
        history = np.stack([action_history(e.actions, s) for e, (_, s) in zip(episodes, begun, strict=True)])
        start = tracks[:, 1]
        motion = motion_between(tracks[:, 0], start)
        place = Place(start, motion, start * 0, torch.from_numpy(history).to(self.device))
        for t in range(WALKED):
            now = [(i, s + t) for i, s in begun]
            z = torch.from_numpy(np.stack([data.latents[i][at] for i, at in now])).float().to(self.device)
            act, phase = (
                torch.tensor([int(getattr(data.episodes[i], name)[at]) for i, at in now], device=self.device)
                for name in ("actions", "phases")
            )
            now_held = views._replace(held=views.held[:, t : t + 1])
            felt = self._recollection.felt(now_held, place, self._recollection.walls(z))
            place = self._recollection.move(place, act, phase, felt)
        miss = (place.pose[:, :2] - tracks[:, -1, :2]).norm(dim=1) * self._units
        turned = wrap(place.pose[:, 2] - tracks[:, -1, 2]).abs().rad2deg()
        return {f"walk{WALKED}_units": float(miss.mean()), f"walk{WALKED}_degrees": float(turned.mean())}


def odometer_loss(told: Tensor, truth: Tensor, error: Tensor) -> Tensor:
    """How unlikely motions (N, 3) are if a way is off by as much as an odometer expects, `error` (N,)."""
    miss = F.smooth_l1_loss(told, truth, beta=MOTION_BETA, reduction="none")
    way = miss[:, :2].sum(-1) / error + 2 * error.log()
    return (way + miss[:, 2]).mean() / 3


LIGHT = 0.3
"""By how much the light of a picture may be off, colour by colour."""


def varied(batch: SurveyBatch) -> SurveyBatch:
    """The same with pictures in other light, half of them in a mirror: mazes of other textures are no other
    geometry."""
    flipped, turned = torch.rand(len(batch.pictures)) < 0.5, torch.rand(len(batch.before)) < 0.5
    pictures = _mirrored(_lit(batch.pictures, _light(len(batch.pictures))), flipped.numpy())
    light = _light(len(batch.before))
    before, after = (_mirrored(_lit(x, light), turned.numpy()) for x in (batch.before, batch.after))
    sign = torch.where(turned[:, None], torch.tensor([1.0, -1.0, -1.0]), 1.0)
    swapped = replace(batch, pictures=pictures, before=before, after=after, turned=sign)
    return replace(swapped, pictured=torch.where(flipped[:, None], batch.pictured.flip(-1), batch.pictured))


def _light(count: int) -> NDArray[np.float32]:
    gain: NDArray[np.float32] = (1 + LIGHT * (2 * torch.rand(count, 1, 1, 3) - 1)).numpy()
    return gain


def _lit(pictures: NDArray[np.uint8], light: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.minimum(pictures * light, 255).astype(np.uint8)


def _mirrored(pictures: NDArray[np.uint8], which: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.where(which[:, None, None, None], pictures[:, :, ::-1], pictures)


def _draw(
    data: LatentDataset, steps: Steps, rng: np.random.Generator, pictures: int, frames: int, pairs: int
) -> SurveyBatch:
    some = torch.from_numpy(rng.integers(0, len(steps.act), pairs))
    chosen = Steps(*(part[some] for part in steps))
    at = [(int(i), int(t)) for i, t in chosen.at]
    lengths = np.array([len(e) for e in data.episodes])

    def draw(count: int) -> list[tuple[int, int]]:
        which = rng.choice(len(lengths), count, p=lengths / lengths.sum())
        return [(int(i), int(rng.integers(0, lengths[i] + 1))) for i in which]

    def walls(places: list[tuple[int, int]]) -> Tensor:
        return torch.from_numpy(np.stack([data.remembered.walls(i, t) for i, t in places]))

    def latents(places: list[tuple[int, int]]) -> Tensor:
        return torch.from_numpy(np.stack([data.latents[i][t] for i, t in places])).float()

    shown, single = draw(pictures), draw(frames)
    return SurveyBatch(
        np.stack([data.episodes[i].frames[t] for i, t in shown]),
        walls(shown),
        latents(single),
        walls(single),
        np.stack([data.episodes[i].frames[t] for i, t in at]),
        np.stack([data.episodes[i].frames[t + 1] for i, t in at]),
        chosen,
    )
