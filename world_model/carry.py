"""What is seen now, as the next motion leaves it: how things that no map holds stay what they are.

A latent says what is in a cell of 16 x 16 pixels, and when the player turns all of it moves by parts of
cells. A network that moves things on that grid blurs them a little every tick. So the present latent is
painted, the picture is moved by geometry, and the result is looked at again: encoder and decoder undo each
other almost without loss, and what is moved stays sharp. How far away what is seen stands, and what is drawn
on the glass and does not move (a weapon, a status bar), a small network reads off the latent.

Axes: F frames, C channels of the latent, h w its rows and columns, H W those of a picture.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from world_model.field import centres

FINER = 4
"""Rows and columns of what is told for each of a latent."""
FARTHEST, NEAREST = 100.0, 0.02
"""Half extents."""
NEARNESS = 4.0
"""Inverse depth, in half extents, that is a unit to the network."""


class Carry(nn.Module):
    """(picture, its latent, motion) of a moment -> the picture of the next, if nothing happened but the
    motion."""

    def __init__(self, latent_dim: int, dim: int, horizon: float) -> None:
        """horizon: the row of a level view, 0 (top) to 1."""
        super().__init__()
        self.horizon = horizon
        self.read = nn.Sequential(
            nn.Conv2d(latent_dim, dim, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(dim, dim, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(dim, 2 * FINER**2, 1),
            nn.PixelShuffle(FINER),
        )
        self.spread: Tensor
        self.register_buffer("spread", torch.tensor(1.0))
        """Tangent of half the horizontal field of view; the map's."""

    def reading(self, z_FChw: Tensor) -> tuple[Tensor, Tensor]:
        """Inverse depth and what is on the glass (0 to 1), each (F, 1, FINER * h, FINER * w), fp32."""
        nearness, glass = self.read(z_FChw).float().chunk(2, 1)
        return F.softplus(nearness) * NEARNESS, torch.sigmoid(glass)

    def forward(
        self, picture_F3HW: Tensor, z_FChw: Tensor, motion_F3: Tensor, mode: str = "bicubic"
    ) -> Tensor:
        """motion: (forward, left, turn) in half extents and radians. What comes into view is smeared from
        the edge. `mode`, of interpolation: gradients of bicubic ones are slow."""
        nearness, glass = self.reading(z_FChw)
        size = picture_F3HW.shape[-2:]
        with torch.autocast(z_FChw.device.type, enabled=False):
            picture, motion = picture_F3HW.float(), motion_F3.float()
            turn = motion * motion.new_tensor([0.0, 0.0, 1.0])
            far = torch.full_like(nearness[:, 0], FARTHEST)
            there = _sample(nearness, self._from(turn, far), "bilinear")
            there, still = (F.interpolate(x, size=size, mode="bilinear") for x in (there, glass))
            depth = 1 / there[:, 0].clamp(min=1 / FARTHEST)
            moved = _sample(picture, self._from(motion, depth), mode)
            out: Tensor = still * picture + (1 - still) * moved
        return out

    def _from(self, motion_F3: Tensor, depth_Frc: Tensor) -> Tensor:
        """Where in the present picture (F, rows, columns, 2), in [-1, 1], that is which the next one shows,
        if it is `depth` ahead then."""
        rows, columns = depth_Frc.shape[-2:]
        forward, left, turn = (m[:, None, None] for m in motion_F3.unbind(1))
        cos, sin = turn.cos(), turn.sin()
        across = centres(columns, motion_F3.device) * self.spread
        ahead = forward + depth_Frc * (cos + across * sin)
        aside = depth_Frc * (across * cos - sin) - left
        zoom = depth_Frc / ahead.clamp(min=NEAREST)
        x = aside * zoom / (depth_Frc * self.spread)
        eye = 1 - 2 * self.horizon
        y = (centres(rows, motion_F3.device)[:, None] + eye) * zoom - eye
        x, y = torch.broadcast_tensors(x, y)
        return torch.stack((x, y), -1)


def _sample(x: Tensor, at: Tensor, mode: str) -> Tensor:
    return F.grid_sample(x, at, mode=mode, padding_mode="border", align_corners=False)
