"""What is seen now, as the next motion leaves it: how things that no map holds stay what they are.

A latent says what is in a cell of 16 x 16 pixels, and when the player turns all of it moves by parts of
cells. Convolutions on that grid would have to learn every shift of every thing. Here a latent is spread out
on a grid four times as fine, which is moved by geometry, and put together again. What stands far off, stands
near, or is drawn on the glass (a weapon, a status bar) moves by different amounts, so each group of channels
is moved as if all that it shows were at one depth, and the network chooses what to keep in which.

Axes: F frames, C channels of the latent, h w its rows and columns.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from world_model.field import centres

FINER = 4
DEPTHS = (100.0, 0.6, 0.25)
"""Half extents: far away, across a hall, near by."""
NEAREST = 0.2
"""Part of its depth within which a thing cannot come in a tick."""


class Carry(nn.Module):
    """(latent, motion) of a moment -> the latent of the next, if nothing happened but the motion."""

    def __init__(self, latent_dim: int, channels: int, horizon: float, dim: int = 128) -> None:
        """`channels` on the fine grid for each of DEPTHS, and as many that do not move."""
        super().__init__()
        self.channels, self.horizon = channels, horizon
        every = channels * (len(DEPTHS) + 1)
        self.lift = nn.Sequential(
            nn.Conv2d(latent_dim, dim, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(dim, every * FINER**2, 1),
            nn.PixelShuffle(FINER),
        )
        self.smooth = nn.Conv2d(every, every, 3, padding=1)
        self.join = nn.Conv2d(every, 2 * channels, 3, padding=1)
        self.lower = nn.Sequential(
            nn.PixelUnshuffle(FINER),
            nn.Conv2d(2 * channels * FINER**2, dim, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(dim, latent_dim, 3, padding=1),
        )
        self.spread: Tensor
        self.register_buffer("spread", torch.tensor(1.0))
        """Tangent of half the horizontal field of view; the map's."""

    def forward(self, z_FChw: Tensor, motion_F3: Tensor) -> Tensor:
        """motion: (forward, left, turn) in half extents and radians."""
        fine = self.lift(z_FChw)
        fine = fine + self.smooth(F.silu(fine))
        still, *moving = fine.split(self.channels, 1)
        rows, columns = fine.shape[-2:]
        with torch.autocast(z_FChw.device.type, enabled=False):
            at = [self._from(motion_F3.float(), depth, rows, columns) for depth in DEPTHS]
            moved = [
                F.grid_sample(m.float(), a, padding_mode="border", align_corners=False)
                for m, a in zip(moving, at, strict=True)
            ]
        joined = self.join(torch.cat((still, *(m.to(still.dtype) for m in moved)), 1))
        out: Tensor = self.lower(F.silu(joined)).float().tanh()
        return out

    def _from(self, motion_F3: Tensor, depth: float, rows: int, columns: int) -> Tensor:
        """Where in the present picture (F, rows, columns, 2), in [-1, 1], that is which the next one shows,
        if it is `depth` ahead then."""
        forward, left, turn = (m[:, None, None] for m in motion_F3.unbind(1))
        cos, sin = turn.cos(), turn.sin()
        across = centres(columns, motion_F3.device) * self.spread
        ahead = forward + depth * (cos + across * sin)
        aside = depth * (across * cos - sin) - left
        zoom = depth / ahead.clamp(min=NEAREST * depth)
        x = aside * zoom / (depth * self.spread)
        eye = 1 - 2 * self.horizon
        y = (centres(rows, motion_F3.device)[:, None] + eye) * zoom - eye
        x, y = torch.broadcast_tensors(x, y)
        return torch.stack((x, y), -1)
