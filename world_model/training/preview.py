"""Free-running previews during training: the dream beside the real frames, and how far it beats copy-seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from world_model.batch_dream import BatchDream
from world_model.data.episodes import Episode
from world_model.dream import DreamEngine
from world_model.evaluation.metrics import laplacian_energy, psnr
from world_model.model import WorldModel
from world_model.precision import native_dtype
from world_model.training.pictures import save_rows

CONTEXT = 32
SAME = 50.0
"""PSNR of copy-seed from which on a window is one in which nothing changed: it says nothing of a gain."""
TICKS = (1, 4, 8, 16, 32, 64, 128, 250)


class RolloutPreview:
    """Windows of held-out episodes in which the player moves, fixed for a run."""

    def __init__(self, episodes: list[Episode], count: int = 12, seed: int = 0) -> None:
        """Of the episodes that are long enough for TICKS, or else of the longest, as far as it goes."""
        rng = np.random.default_rng(seed)
        longest = max(map(len, episodes))
        self._ticks = [k for k in TICKS if CONTEXT + k < longest]
        length = CONTEXT + max(self._ticks)
        episodes = [e for e in episodes if len(e) > length]
        self._windows = [_moving_window(episodes[i % len(episodes)], length, rng) for i in range(count)]

    def __call__(self, world: WorldModel, path: Path) -> dict[str, float]:
        """Writes a strip of up to six windows (real over dream) and returns gains in dB over copy-seed."""
        was_training = world.training
        world.eval()
        device = next(world.parameters()).device.type
        dream = BatchDream(DreamEngine(world, native_dtype(device)))
        obs = np.stack([e.frames[s : s + CONTEXT] for e, s in self._windows])
        last = max(self._ticks)
        act = np.stack([e.actions[s : s + CONTEXT + last] for e, s in self._windows]).astype(np.int64)
        phase = np.array([e.phases[s] for e, s in self._windows], np.int64)
        dream.reset(obs, act[:, : CONTEXT - 1], phase)
        scores: dict[str, float] = {}
        rows: list[list[np.ndarray]] = [[] for _ in range(2 * min(6, len(self._windows)))]
        for tick in range(1, last + 1):
            images = dream.step(act[:, CONTEXT + tick - 2])
            if tick not in self._ticks:
                continue
            real = [e.frames[s + CONTEXT - 1 + tick] for e, s in self._windows]
            seed = [o[-1] for o in obs]
            own = np.array([psnr(a, b) for a, b in zip(images, real, strict=True)])
            held = np.array([psnr(a, b) for a, b in zip(seed, real, strict=True)])
            moved = held < SAME
            if moved.any():
                scores[f"gain{tick}"] = float((own - held)[moved].mean())
            if tick in (8, 128):
                scores[f"psnr{tick}"] = float(own.mean())
            if tick in (32, 128):
                scores[f"sharp{tick}"] = sum(map(laplacian_energy, images)) / sum(map(laplacian_energy, real))
            for i in range(len(rows) // 2):
                rows[2 * i].append(real[i])
                rows[2 * i + 1].append(images[i])
        save_rows(path, rows, shrink=2)
        world.train(was_training)
        return scores


def _moving_window(episode: Episode, length: int, rng: np.random.Generator) -> tuple[Episode, int]:
    """The one of eight random windows in which most happens: pictures differ most from tick to tick."""
    starts = rng.integers(0, len(episode) - length, 8)

    def change(start: int) -> float:
        frames = episode.frames[start : start + length : 8, ::8, ::8].astype(np.float32)
        return float(np.median(np.abs(np.diff(frames, axis=0)).mean((1, 2, 3))))

    return episode, int(max(starts, key=change))
