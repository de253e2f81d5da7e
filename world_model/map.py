"""The map in a world's weights: what is seen from a pose, coarsely for the trunk, finely for the decoder.

Surfaces and their paint (`field.py`) are read along lines of sight; small convolutions make of that what
the trunk and the decoder use.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from world_model.config import DynamicsConfig
from world_model.field import COARSE_CHANNELS, FINE_CHANNELS, Surfaces

SEEN_CHANNELS = 64
DETAIL_CHANNELS = 64
FINE_DETAIL = 32


class Detail(NamedTuple):
    """What the map gives the decoder: coarse (F, DETAIL_CHANNELS, 4 h, 4 w) and fine (F, FINE_DETAIL,
    8 h, 8 w); known (F, 1, 4 h, 4 w), 1 where it knows what is seen and 0 where not, if it does not know
    everything; things (F, 4, 16 h, 16 w), what is before it, colour times opacity in [0, 1] and opacity."""

    coarse: Tensor
    fine: Tensor
    known: Tensor | None = None
    things: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> Detail:
        """The same of all its parts, changed."""
        return Detail(*(None if part is None else change(part) for part in self))  # type: ignore[arg-type]


class Glance(nn.Module):
    """What is read along two by two lines of sight in each cell of the latent -> SEEN_CHANNELS features."""

    def __init__(self, latent_dim: int, channels: int = COARSE_CHANNELS) -> None:
        super().__init__()
        self.latent_dim, c = latent_dim, SEEN_CHANNELS
        self.enter = nn.Sequential(
            nn.Conv2d(channels, c, 1), nn.SiLU(), nn.PixelUnshuffle(2), nn.Conv2d(4 * c, c, 1)
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.SiLU(), nn.Conv2d(c, c, 3, padding=1), nn.SiLU(), nn.Conv2d(c, c, 3, padding=1))
            for _ in range(1)
        )
        self.out = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, read: Tensor) -> Tensor:
        h = self.enter(_like(read, self.out))
        for block in self.blocks:
            h = h + block(h)
        out = self.out(F.silu(h)).float()
        return torch.cat((out[:, : self.latent_dim].tanh(), out[:, self.latent_dim :]), 1)


class Gaze(nn.Module):
    """What is read along a line of sight for each 4 x 4 and each 2 x 2 pixels -> `Detail`."""

    def __init__(self, channels: int = COARSE_CHANNELS, fine_channels: int = FINE_CHANNELS) -> None:
        super().__init__()
        d, f = DETAIL_CHANNELS, FINE_DETAIL
        self.coarse = nn.Sequential(nn.Conv2d(channels, d, 1), nn.SiLU(), nn.Conv2d(d, d, 3, padding=1))
        self.choose = nn.Conv2d(d, 4 * f, 1)
        self.fine = nn.Sequential(nn.Conv2d(fine_channels, d, 1), nn.SiLU(), nn.Conv2d(d, f, 1))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.SiLU(), nn.Conv2d(f, f, 3, padding=1), nn.SiLU(), nn.Conv2d(f, f, 1))
            for _ in range(2)
        )

    def forward(self, read: Tensor, read_fine: Tensor) -> Detail:
        coarse = self.coarse(_like(read, self.choose))
        # The coarse levels choose among the textures that share the tiles.
        choice = F.pixel_shuffle(self.choose(F.silu(coarse)), 2)
        fine = self.fine(_like(read_fine, self.choose)) * (1 + choice)
        for block in self.blocks:
            fine = fine + block(fine)
        return Detail(coarse, fine)


class Map(nn.Module):
    """What is seen from a pose, coarsely for the trunk and finely for the decoder."""

    def __init__(self, latent_dim: int, grid: tuple[int, int], config: DynamicsConfig) -> None:
        super().__init__()
        self.grid = grid
        self.surfaces = Surfaces(
            config.plan_size, config.paint_bits, config.tile, config.heights, config.horizon
        )
        self.glance, self.gaze = Glance(latent_dim), Gaze()

    def seen(self, pose_F3: Tensor) -> Tensor:
        """(F, SEEN_CHANNELS, h, w), the first of them a latent in (-1, 1)."""
        rows, columns = self.grid
        read = self.surfaces.read(pose_F3, 2 * rows, 2 * columns)
        seen: Tensor = self.glance(read)
        return seen

    def detail(self, pose_F3: Tensor) -> Detail:
        """What the decoder is given."""
        rows, columns = self.grid
        coarse = self.surfaces.read(pose_F3, 4 * rows, 4 * columns)
        fine = self.surfaces.read(pose_F3, 8 * rows, 8 * columns, fine=True)
        detail: Detail = self.gaze(coarse, fine)
        return detail


def _like(x: Tensor, layer: nn.Conv2d) -> Tensor:
    return x.to(layer.weight.dtype, memory_format=torch.channels_last)
