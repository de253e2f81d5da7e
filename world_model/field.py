"""The map as surfaces: where the walls of a fixed place stand, and what is painted on them.

A network that is told a pose and asked for the picture has to learn every view of every wall apart. Here a
view is taken apart instead, and each part is learned once: `Walls` is a signed distance to the nearest wall
over the floor plan, floor and ceiling are two heights, and `Paint` is a hash grid over the surfaces (Mueller
et al., 2022). Looking means marching along the line of sight of each column until the distance changes its
sign, and reading the paint at what each line of sight meets. Walls, field of view and paint are learned from
frames, poses and depth; known beforehand are the two heights, and that walls are upright, floor and ceiling
level.

Lengths are in half extents of the map. F frames, R rows and C columns of lines of sight.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EXTENT = 1.15
"""The floor plan covers (-EXTENT, EXTENT) in x and y."""
NEAR, FAR = 0.012, 2.8
"""Depths between which walls are looked for."""
MARCH = (0.005, 0.012)
"""A step of the march: at no depth, and how much longer it gets per depth."""
FREE = 0.04
"""Distances are told up to this; farther is just free."""
ROOM = 0.015
"""Whoever is nearer to a wall than this has slipped into it."""
PAINT_CHANNELS = 4
COARSE = (0.14, 0.036, 0.018)
"""Sizes of the cells of the paint's coarse levels."""
FINE = 0.009
"""And of the fine level that knows each place apart."""
TILED = (32, 64)
"""Cells in a tile, for the levels that repeat: textures do, so a wall is learned from all its like."""
PAINT_RATE = 10.0
"""An entry of the paint is seldom looked at, so it learns this much faster."""
PRIMES = (1, -1640531535, 805459861)
TOLD = 6
"""Channels that tell how a surface is met, beside its paint."""
COARSE_CHANNELS = PAINT_CHANNELS * len(COARSE) + TOLD
FINE_CHANNELS = PAINT_CHANNELS * (1 + len(TILED)) + TOLD


class View(NamedTuple):
    """What lines of sight meet: depth (F, R, C) perpendicular to the picture, point (F, R, C, 3), wall
    (F, R, C), 1 where it is a wall and 0 for floor and ceiling."""

    depth: Tensor
    point: Tensor
    wall: Tensor


class Walls(nn.Module):
    """Signed distance to the nearest wall over the floor plan; positive where one can stand."""

    def __init__(self, size: int) -> None:
        super().__init__()
        # What nobody ever saw into is solid: a pose that gets lost must not find a way out of the map.
        self.embed = nn.Parameter(torch.full((1, 1, size, size), -0.5 * FREE))

    def forward(self, xy: Tensor) -> Tensor:
        """Points (..., 2) -> distances (...)."""
        grid = (xy.float() / EXTENT).reshape(1, 1, -1, 2)
        found = F.grid_sample(self.embed.float(), grid, padding_mode="border", align_corners=False)
        return found.view(xy.shape[:-1])


class Level(NamedTuple):
    """One level of the paint: size of its cells, and after how many it repeats in x and y (0: never)."""

    cell: float
    repeat: int


class Paint(nn.Module):
    """Hash grids over the surfaces: points (N, 3) -> (N, levels * PAINT_CHANNELS), trilinear in each."""

    def __init__(self, levels: tuple[Level, ...], bits: tuple[int, ...]) -> None:
        super().__init__()
        self.levels = levels
        self.embed = nn.ParameterList(
            nn.Parameter(torch.empty(2**b, PAINT_CHANNELS).uniform_(-0.1, 0.1)) for b in bits
        )
        for table in self.embed:
            table.rate = PAINT_RATE

    def forward(self, points: Tensor) -> Tensor:
        read = [_read(points, *pair) for pair in zip(self.levels, self.embed, strict=True)]
        return torch.cat(read, -1)


def _read(points: Tensor, level: Level, table: Tensor) -> Tensor:
    """The weighted sum of the entries of the eight corners around each point. Axes 0 to 2 of what follows
    are near or far in x, y and z, the last is N: long rows are what a processor is quick at."""
    scaled = points.t().contiguous() / level.cell
    low = scaled.floor()
    part = scaled - low
    corner = torch.stack((low.int(), low.int() + 1))
    if level.repeat:
        corner[:, :2] &= level.repeat - 1
    # Products overflow, and wrap around, alike everywhere.
    corner = corner * torch.tensor(PRIMES, dtype=torch.int32, device=points.device)[:, None]
    x, y, z = corner.unbind(1)
    index = (x[:, None, None] ^ y[None, :, None] ^ z[None, None]) & (len(table) - 1)
    u, v, w = torch.stack((1 - part, part)).unbind(1)
    weight = (u[:, None, None] * v[None, :, None]) * w[None, None]
    found: Tensor = F.embedding_bag(
        index.view(8, -1).t().contiguous(),
        table.float(),
        per_sample_weights=weight.view(8, -1).t().contiguous(),
        mode="sum",
    )
    return found


class Surfaces(nn.Module):
    """Walls, floor, ceiling and their paint; `read` looks at them from poses."""

    def __init__(
        self,
        size: int,
        bits: tuple[int, ...],
        tile: float,
        heights: tuple[float, float],
        horizon: float = 0.5,
    ) -> None:
        super().__init__()
        self.horizon = horizon
        """Of the picture's height, from above."""
        self.heights = heights
        """Of floor and ceiling over the eye."""
        self.walls = Walls(size)
        split = len(COARSE)
        self.coarse = Paint(tuple(Level(cell, 0) for cell in COARSE), bits[:split])
        fine = (Level(FINE, 0), *(Level(tile / cells, cells) for cells in TILED))
        self.fine = Paint(fine, bits[split:])
        self.spread = nn.Parameter(torch.tensor(1.0))
        """Tangent of half the horizontal field of view."""

    def directions(self, pose_F3: Tensor, columns: int) -> Tensor:
        """(F, C, 2): where each column leads on the floor plan per unit of depth."""
        cos, sin = pose_F3[:, 2:].cos(), pose_F3[:, 2:].sin()
        across = centres(columns, pose_F3.device) * self.spread
        return torch.stack((cos + across * sin, sin - across * cos), -1)

    def march(self, pose_F3: Tensor, steps: Tensor, columns: int) -> Tensor:
        """Signed distances (F, C, S) at depths (S,) along each column."""
        way = self.directions(pose_F3, columns)[:, :, None] * steps[:, None]
        return self.walls(way + pose_F3[:, None, None, :2])

    def view(self, pose_F3: Tensor, rows: int, columns: int) -> View:
        """What R x C lines of sight, spread evenly over the picture, meet."""
        steps = march_steps(pose_F3.device)
        distance = self.march(pose_F3, steps, columns)
        solid = distance <= 0
        # The last step counts as solid: a line of sight that meets nothing ends there.
        solid = torch.cat((solid[..., 1:-1], torch.ones_like(solid[..., :1])), -1)
        hit = solid.to(torch.uint8).argmax(-1, keepdim=True)
        before, after = distance.gather(-1, hit), distance.gather(-1, hit + 1)
        part = (before / (before - after).clamp(min=1e-6)).clamp(0, 1)
        wall = (steps[hit] + part * (steps[hit + 1] - steps[hit]))[..., 0][:, None]
        down = self._below(rows, pose_F3.device)[:, None] * (rows / columns) * self.spread
        floor, ceiling = self.heights
        level = torch.where(down > 0, -floor, ceiling) / down.abs()
        depth = torch.minimum(wall, level)
        way = self.directions(pose_F3, columns)[:, None] * depth[..., None]
        point = torch.cat((way + pose_F3[:, None, None, :2], -(down * depth)[..., None]), -1)
        return View(depth, point, (wall < level).float())

    def read(self, pose_F3: Tensor, rows: int, columns: int, fine: bool = False) -> Tensor:
        """Paint of what is seen, and how it is met: (F, COARSE_CHANNELS or FINE_CHANNELS, R, C)."""
        # Positions need all their digits: a wall is hundreds of cells of paint long.
        with torch.autocast(pose_F3.device.type, enabled=False):
            view = self.view(pose_F3.float(), rows, columns)
            paint = (self.fine if fine else self.coarse)(view.point.flatten(0, 2)).view(*view.depth.shape, -1)
            log = view.depth.clamp(min=NEAR).log()
            slope = F.pad(log[..., 1:] - log[..., :-1], (0, 1)).clamp(-1, 1)
            down = self._below(rows, log.device)[:, None].expand_as(log)
            across = centres(columns, log.device).expand_as(log)
            told = torch.stack((log, 4 * slope, down, across, view.wall, 8 * view.point[..., 2]), -1)
            return torch.cat((4 * paint, told), -1).permute(0, 3, 1, 2)

    def _below(self, rows: int, device: torch.device) -> Tensor:
        """How far below the horizon each row is, in half heights of the picture."""
        return centres(rows, device) + (1 - 2 * self.horizon)


@cache
def centres(count: int, device: torch.device) -> Tensor:
    """Middles of `count` equal parts of (-1, 1); made once, so not to be changed."""
    with torch.inference_mode(False):
        return (torch.arange(count, device=device) + 0.5) * 2 / count - 1


def march_steps(device: torch.device) -> Tensor:
    """Depths (S,) from NEAR to FAR, ever farther apart."""
    steps = [NEAR]
    while steps[-1] < FAR:
        steps.append(steps[-1] + MARCH[0] + MARCH[1] * steps[-1])
    return torch.tensor(steps, device=device)


def compass(radius: float, device: torch.device) -> Tensor:
    """Eight points (8, 2) around the origin."""
    angle = torch.arange(8, device=device) * (math.pi / 4)
    return radius * torch.stack((angle.cos(), angle.sin()), -1)
