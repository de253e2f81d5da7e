"""Stage `feel`: how far the walls are that a dream shows, told from its latents and its keyframes.

Who is stopped by a wall has to know of it before the next picture is painted, and no dream may hang on
whether it is painted at all. A dreamed latent alone tells little of walls: where keyframes paint the picture
it grows dull, and nobody sees it. So dreams are dreamed, of players who do what was done elsewhere and run
into things, their pictures measured by the surveyor, and the rangefinder learns to say the same without them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from world_model.data.dataset import LatentDataset
from world_model.dream import DreamEngine
from world_model.model import WorldModel
from world_model.precision import mixed_precision, native_dtype
from world_model.recollection import DEPTHS
from world_model.training.recall_stage import noised

DREAMS, CONTEXT = 8, 48
"""Dreams at once, and the real frames before each."""
PIECE, PIECES = 48, 2
"""Ticks of other walks, one after the other, that are dreamed then."""
MEASURED = 2
"""Every so many ticks a dream is measured: the next one shows nearly the same."""
KEPT, MOMENTS, FRAMES = 4096, 64, 64
"""Moments of dreams that are held, and how many of them, and of real frames, make a step."""
AGAIN = 40
"""Steps after each round of dreams."""


@dataclass(frozen=True)
class FeelBatch:
    """What dreams begin with: frames uint8 (B, T, H, W, 3), their latents (B, T, C, h, w), the actions
    (B, T - 1 + N) between and after them and the first phase (B,). And latents of other real
    frames, z (F, C, h, w), with the depths (F, columns) in them."""

    frames: NDArray[np.uint8]
    begun: Tensor
    act: NDArray[np.int64]
    phase: NDArray[np.int64]
    z: Tensor
    walls: Tensor


def feeling(world: WorldModel) -> nn.ModuleDict:
    """What this stage trains."""
    found = world.dynamics.recollection
    assert found is not None, "this world has a map, or no sense of place at all"
    return nn.ModuleDict({"rangefinder": found.rangefinder})


class FeelStage:
    """Trains the rangefinder on its own dreams."""

    name = "feel"

    def __init__(self, world: WorldModel, data: LatentDataset, held_out: LatentDataset, device: str) -> None:
        self.device = torch.device(device)
        self._data, self._held_out = data, held_out
        world.requires_grad_(False)
        world.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model: nn.Module = feeling(world).requires_grad_(True)
        assert world.dynamics.recollection is not None
        self._recollection = world.dynamics.recollection
        self._engine = DreamEngine(world, native_dtype(self.device.type))
        self._held: list[tuple[Tensor, ...]] = []
        self._again = 0

    def batch(self, rng: np.random.Generator, done: float) -> FeelBatch:
        return _draw(self._data, rng, DREAMS, FRAMES)

    def loss(self, batch: FeelBatch, done: float) -> tuple[Tensor, dict[str, float]]:
        if not self._again:
            self._held = (self._held + self._moments(batch))[-KEPT // DREAMS :]
            self._again = AGAIN
        self._again -= 1
        some = torch.randint(len(self._held), (MOMENTS // DREAMS,)).tolist()
        z, told, walls = _together([self._held[i] for i in some])
        with mixed_precision(self.device.type):
            felt = _miss(self._recollection.rangefinder(z, told), walls).mean()
            real = self._recollection.rangefinder(noised(batch.z.to(self.device)))
            ranged = _miss(real, batch.walls.to(self.device)).mean()
        return felt + ranged, {"felt": felt.item(), "range": ranged.item()}

    @torch.no_grad()
    def _moments(self, batch: FeelBatch) -> list[tuple[Tensor, ...]]:
        """Moments of dreams: latents, what keyframes told, and the walls that their pictures show."""
        engine, act = self._engine, torch.from_numpy(batch.act).to(self.device)
        context = batch.frames.shape[1]
        state = engine.start(
            batch.begun.to(self.device), batch.act[:, : context - 1], batch.phase, obs=batch.frames
        )
        found = []
        for t in range(batch.act.shape[1] + 1 - context):
            state = engine.tick(state, act[:, context - 1 + t])
            if not bool(torch.isfinite(state.place.pose).all()):
                break  # a dream that has lost itself teaches nothing
            if t % MEASURED == 0:
                image = torch.from_numpy(engine.show(state)).to(self.device).permute(0, 3, 1, 2)
                with mixed_precision(self.device.type):
                    walls = self._recollection.survey(image.contiguous())
                found.append(tuple(x.half().clone() for x in (state.z, engine.told(state), walls)))
        return found

    @torch.no_grad()
    def preview(self, path: Path) -> dict[str, float]:
        """Median errors, in per cent, of walls in held-out dreams, as told with keyframes and without."""
        batch = _draw(self._held_out, np.random.default_rng(0), 2 * DREAMS, 1)
        moments = self._moments(batch)
        z, told, walls = _together(moments)
        with mixed_precision(self.device.type):
            felt, alone = (_miss(self._recollection.rangefinder(z, t), walls) for t in (told, None))
        return {"felt_percent": 100 * float(felt.median()), "alone_percent": 100 * float(alone.median())}


def _together(moments: list[tuple[Tensor, ...]]) -> list[Tensor]:
    return [torch.cat(parts).float() for parts in zip(*moments, strict=True)]


def _miss(told: Tensor, depth: Tensor) -> Tensor:
    return (told - depth.clamp(*DEPTHS).log()).abs()


def _draw(data: LatentDataset, rng: np.random.Generator, dreams: int, frames: int) -> FeelBatch:
    lengths = np.array([len(e) for e in data.episodes])

    def draw(count: int, ticks: int) -> list[tuple[int, int]]:
        which = rng.choice(len(lengths), count, p=lengths / lengths.sum())
        return [(int(i), int(rng.integers(0, lengths[i] - ticks + 1))) for i in which]

    def acts(places: list[tuple[int, int]], ticks: int) -> NDArray[np.int64]:
        return np.stack([data.episodes[i].actions[s : s + ticks] for i, s in places]).astype(np.int64)

    shortest = int(lengths.min())
    ticks, piece = min(CONTEXT - 1, shortest), min(PIECE, shortest)
    begun, single = draw(dreams, ticks), draw(frames, 0)
    elsewhere = [acts(draw(dreams, piece), piece) for _ in range(PIECES)]
    return FeelBatch(
        np.stack([data.episodes[i].frames[s : s + ticks + 1] for i, s in begun]),
        torch.from_numpy(np.stack([data.latents[i][s : s + ticks + 1] for i, s in begun])).float(),
        np.concatenate((acts(begun, ticks), *elsewhere), 1),
        np.array([int(data.episodes[i].phases[s]) for i, s in begun]),
        torch.from_numpy(np.stack([data.latents[i][t] for i, t in single])).float(),
        torch.from_numpy(np.stack([data.remembered.walls(i, t) for i, t in single])),
    )
