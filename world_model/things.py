"""Things that are kept apart from the picture, and how the player sees them.

Axes: B dreams, N slots. Lengths are in half extents of the map; a place is x, y and the height z over the
floor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from world_model.recall import into_view

TALLER = 1.2
"""How much higher than wide Doom's pixels are shown: heights on the picture are longer by that."""
NEAREST, FARTHEST = 0.04, 2.5
"""Between which depths things are painted."""
SIGHT = 24
"""Points at which a line of sight is asked whether it is free."""
ANCHOR = 0.03
"""Height over its foot at which a thing is in a cell."""

Walls = Callable[[Tensor], Tensor]
"""Points (..., 2) -> signed distances to the nearest wall; see `field.Walls`."""


class Things(NamedTuple):
    """What there is: kind (B, N), 0 for an empty slot; look (B, N), 0 for nothing to be seen (something that
    was picked up and will be back); way (B, N), how it moved last; at (B, N, 3); hidden (B, N, D), what
    `Behaviour` remembers of it."""

    kind: Tensor
    look: Tensor
    way: Tensor
    at: Tensor
    hidden: Tensor


class Camera(NamedTuple):
    """How the picture is taken: tangent of half the horizontal field of view, the eye over the floor (a
    length on the picture), the row of a level view from 0 (top) to 1, and height by width."""

    spread: Tensor
    eye: float
    horizon: float
    aspect: float

    def row(self, z: Tensor, ahead: Tensor) -> Tensor:
        """Where in [-1, 1] a height over the floor is seen, `ahead` of the player."""
        down = (self.eye - TALLER * z) / ahead.clamp(min=NEAREST)
        return down / (self.aspect * self.spread) - (1 - 2 * self.horizon)

    @property
    def bottom(self) -> float:
        """The row at which the view ends, and a status bar may begin."""
        return min(1.0, 4 * self.horizon - 1)

    @property
    def lowest(self) -> float:
        """The lowest row that counts: what stands near ends below the view."""
        return min(0.97, self.bottom) - 0.04

    def cpu(self) -> Camera:
        """The same for recordings, which stay in the computer's own memory."""
        return self._replace(spread=self.spread.detach().cpu())

    def column(self, right: Tensor, ahead: Tensor) -> Tensor:
        """The same to the right of the player."""
        return right / (self.spread * ahead.clamp(min=NEAREST))


def free_sight(walls: Walls, eye: Tensor, to: Tensor) -> Tensor:
    """Whether no wall is between points (..., 2)."""
    part = (torch.arange(SIGHT, device=to.device) + 0.5) / SIGHT
    between = eye[..., None, :] + part[:, None] * (to - eye)[..., None, :]
    return walls(between).amin(-1) > 0


def in_sight(things: Things, pose_B3: Tensor, camera: Camera, walls: Walls) -> Tensor:
    """(B, N): which things can be seen from a pose; the middle of each counts."""
    ahead, right = into_view(things.at[..., :2], pose_B3[:, None])
    seen = (things.kind > 0) & (ahead > NEAREST) & (camera.column(right, ahead).abs() < 1)
    return seen & free_sight(walls, pose_B3[:, None, :2].expand_as(things.at[..., :2]), things.at[..., :2])
