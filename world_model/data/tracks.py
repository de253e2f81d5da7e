"""What there is in the map, tick by tick, as a world with a cast is taught it.

Of the source's own words only numbers, names and places are used. How a thing looks it does not tell: that is
seen in the picture, where the depth says that nothing is before it.

Axes: T + 1 frames, N slots. Lengths are in half extents of the map.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from world_model.data.dataset import LatentDataset
from world_model.data.episodes import Episode
from world_model.recall import into_view
from world_model.things import ANCHOR, Camera

CLEAR = 0.6
"""Depth up to which looks are told apart."""
SAME_DEPTH = 0.022
"""By which depths of one thing may differ."""

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Track:
    """An episode's things: kind (T + 1, N), 0 for an empty slot; at (T + 1, N, 3); clear (T + 1, N), 1 where
    the thing is seen, 2 where its place is seen and it is not there, 0 where nobody knows. A thing keeps its
    slot. pose (T + 1, 3)."""

    kind: Ints
    at: Floats
    clear: Ints
    pose: Floats

    def moment(self, tick: int) -> Track:
        """One frame of it."""
        own = slice(tick, tick + 1)
        return Track(self.kind[own], self.at[own], self.clear[own], self.pose[own])


def track(
    data: LatentDataset,
    index: int,
    names: tuple[str, ...],
    slots: int,
    camera: Camera,
    farthest: float = CLEAR,
) -> Track:
    """Of an episode of a source that tells things; kinds as they are numbered by `names`, from 1. What is
    farther off than `farthest` is not told to be seen."""
    episode, pose = data.episodes[index], data.pose(index)
    assert episode.things is not None and pose is not None
    told = np.asarray(episode.things)
    known = {1 + i: 1 + names.index(n) for i, n in enumerate(episode.header["things"]) if n in names}
    frames = len(told)
    kind = np.zeros((frames, slots), np.int64)
    at = np.zeros((frames, slots, 3), np.float32)
    held: dict[int, int] = {}
    origin, scale = data.frame_of_reference
    for t, row in enumerate(told):
        now = {int(r[0]): r for r in row if r[0] and int(r[1]) in known}
        held = {number: slot for number, slot in held.items() if number in now}
        for number, r in now.items():
            if number not in held:
                free = set(range(slots)) - set(held.values())
                if not free:
                    continue
                held[number] = min(free)
            slot = held[number]
            kind[t, slot] = known[int(r[1])]
            at[t, slot] = (np.append(r[2:4] - origin, r[4])) / scale
    return Track(kind, at, _clear(data, episode, kind, at, pose, camera, farthest), pose)


def _clear(
    data: LatentDataset,
    episode: Episode,
    kind: Ints,
    at: Floats,
    pose: Floats,
    camera: Camera,
    farthest: float,
) -> Ints:
    assert episode.depth is not None
    where = torch.from_numpy(at)
    ahead, right = into_view(where[..., :2], torch.from_numpy(pose)[:, None])
    x = camera.column(right, ahead)
    y = camera.row(where[..., 2] + ANCHOR * (where[..., 2] <= 0.01), ahead)
    depth = torch.from_numpy(np.asarray(episode.depth, np.float32)) / data.frame_of_reference[1]
    rows, columns = depth.shape[1:]
    inside = (ahead > 0.06) & (ahead < farthest) & (x.abs() < 0.97) & (y > -0.97)
    inside &= torch.from_numpy(kind) > 0
    near, y = y > camera.lowest, y.clamp(max=camera.lowest)
    column = ((x + 1) / 2 * columns).long().clamp(0, columns - 1)
    row = ((y + 1) / 2 * rows).long().clamp(0, rows - 1)
    there = depth[torch.arange(len(depth))[:, None], row, column]
    seen = inside & ((there - ahead).abs() < SAME_DEPTH)
    through = inside & ~near & (there > ahead + 2 * SAME_DEPTH)
    return (seen.long() + 2 * through.long()).numpy()


def crop(
    frame: Tensor, at_N3: Tensor, board_N3: Tensor, pose_3: Tensor, camera: Camera, texels: int, mode: str
) -> tuple[Tensor, Tensor]:
    """What a picture (C, H, W) shows where boards stand: (N, C, S, S), and where that is within the picture
    (N, S, S)."""
    ahead, right = into_view(at_N3[:, :2], pose_3)
    across = (torch.arange(texels) + 0.5) * 2 / texels - 1
    x = camera.column(right[:, None] + across * board_N3[:, :1], ahead[:, None])
    low, high = board_N3[:, 1:2], board_N3[:, 2:3]
    z = at_N3[:, 2:] + high + (across + 1) / 2 * (low - high)
    y = camera.row(z, ahead[:, None])
    where = torch.stack(torch.broadcast_tensors(x[:, None], y[:, :, None]), -1)
    seen = F.grid_sample(
        frame[None].expand(len(where), -1, -1, -1),
        where,
        mode=mode,
        padding_mode="border",
        align_corners=False,
    )
    inside = (where[..., 0].abs() < 1) & (where[..., 1] > -1) & (where[..., 1] < camera.bottom)
    return seen, inside
