"""What a dream would hold in memory at a tick of an episode: keyframes with where and how they were seen."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from world_model.data.episodes import Episode
from world_model.memory import apart
from world_model.recall import Lens, Views, retrieve, worth


class Held(NamedTuple):
    """`Views` of B clips whose walls are the game's own, and the latents (B, K, C, h, w) of the keyframes."""

    views: Views
    z: Tensor

    def to(self, device: torch.device | str) -> Held:
        return Held(self.views.to(device), self.z.to(device))


class Remembered:
    """The keyframes of episodes whose poses and depths are known.

    poses: (T + 1, 3) of each episode in half extents of `scale` units; latents (T + 1, C, h, w).
    """

    def __init__(
        self,
        episodes: list[Episode],
        poses: list[NDArray[np.float32]],
        latents: list[NDArray[np.float16]],
        scale: float,
        size: int,
    ) -> None:
        self._episodes, self._poses, self._latents, self._size = episodes, poses, latents, size
        self._walls = [_walls(e, scale) for e in episodes]
        self._taken = [_taken_in(p) for p in poses]

    def walls(self, index: int, tick: int) -> NDArray[np.float32]:
        """How far the wall is in each column of a frame (C,)."""
        row: NDArray[np.float32] = self._walls[index][tick]
        return row

    def stands(self, at: list[tuple[int, int]]) -> Tensor:
        """The poses (F, 3) of these frames (episode, tick)."""
        return torch.from_numpy(np.stack([self._poses[i][t] for i, t in at]))

    def held(
        self,
        places: list[tuple[int, int]],
        ticks: int,
        lens: Lens,
        aspect: float,
        count: int,
        later: int,
        pictures: bool = True,
        beyond: list[float] | None = None,
    ) -> Held:
        """For clips that start at (episode, tick): up to `count` keyframes of what was held then, those that
        show most of what the clip sees, and the first `later` of those that it takes in itself, each from
        the tick after it on. held is (B, `ticks`, count + later); tick t leads to frame t + 1.
        Without `pictures` these are empty. beyond: half extents of each clip's end within which nothing was
        held, where that is not 0; such clips take in nothing themselves."""
        far = beyond or [0.0] * len(places)
        how = (ticks, lens, aspect, count, later)
        chosen = [self._choose(i, s, off, *how) for (i, s), off in zip(places, far, strict=True)]
        at = [[c if c >= 0 else s for c in row] for (_, s), row in zip(places, chosen, strict=True)]
        now = np.array([s for _, s in places])[:, None] + np.arange(ticks)
        born = np.array([[c if c >= 0 else 2**31 for c in row] for row in chosen])
        pairs = [(self._episodes[i], i, row) for (i, _), row in zip(places, at, strict=True)]
        images = torch.zeros(len(places), count + later, 0, dtype=torch.uint8)
        if pictures:
            frames = np.stack([np.stack([e.frames[t] for t in row]) for e, _, row in pairs])
            images = torch.from_numpy(frames).permute(0, 1, 4, 2, 3).contiguous()
        views = Views(
            images,
            torch.from_numpy(np.stack([self._poses[i][row] for _, i, row in pairs])),
            torch.from_numpy(np.stack([self._walls[i][row] for _, i, row in pairs])),
            torch.from_numpy(born[:, None] <= now[..., None]),
        )
        z = torch.from_numpy(np.stack([self._latents[i][row] for _, i, row in pairs])).float()
        return Held(views, z)

    def _choose(
        self,
        index: int,
        start: int,
        beyond: float,
        ticks: int,
        lens: Lens,
        aspect: float,
        count: int,
        later: int,
    ) -> list[int]:
        """Ticks of the keyframes, -1 for none."""
        width = count + later
        taken = self._taken[index]
        past = taken[taken <= start][-self._size :]
        if beyond:
            off = self._poses[index][past, :2] - self._poses[index][start + ticks, :2]
            far = past[np.linalg.norm(off, axis=1) >= beyond]
            past, later = far if len(far) else past[:1], 0  # a bank holds something
        fresh = taken[(taken > start) & (taken < start + ticks)][:later].tolist()
        poses = torch.from_numpy(self._poses[index][past])[None]
        walls = torch.from_numpy(self._walls[index][past])[None]
        held = torch.ones(1, 1, len(past), dtype=torch.bool)
        views = Views(walls.new_zeros(1, len(past), 0), poses, walls, held)
        picks: list[int] = []
        wanted = torch.from_numpy(self._poses[index][[start + 1, start + ticks // 2, start + ticks]])
        for pose, shows in zip(wanted, worth(views, lens, wanted[None], aspect)[0], strict=True):
            picks += retrieve(views, pose[None], -(-count // 3), shows[None])[0].tolist()
        own = [int(past[k]) for k in dict.fromkeys(picks)][:count]
        row = own + fresh
        return row + [-1] * (width - len(row))


def _walls(episode: Episode, scale: float) -> NDArray[np.float32]:
    assert episode.depth is not None, "this source tells no depth"
    return (episode.depth[:, episode.depth.shape[1] // 2].astype(np.float32) / scale).astype(np.float32)


def _taken_in(poses: NDArray[np.float32]) -> NDArray[np.int64]:
    """Ticks at which a bank without bounds takes in a frame (`KeyframeBank.wants`)."""
    all_poses = torch.from_numpy(poses)
    taken = [0]
    for tick in range(1, len(poses)):
        if bool((apart(all_poses[taken], all_poses[tick]) >= 1).all()):
            taken.append(tick)
    return np.array(taken)
