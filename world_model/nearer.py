"""What keyframes show, as it is for who sees it from nearer: in its light, and with its grain.

Games darken what is far off. And a keyframe shows a far wall as some few pixels, which who walks up to it
sees enlarged: a blur; one that was made up shows even less. What is smaller nothing tells, so a network that
is to be right in the mean cannot paint it; it can only be drawn. Here it is, as noise tied to places: cells
of some sizes in space, each a little brighter or darker than the next, so that a wall has the same grain from
everywhere and at every return. How strong which size is where, is learned (stages `light` and `grain`).

Axes: F poses, K sizes of cells, R L rows and columns of a coarse look, H W of a picture. Lengths are in half
extents.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from world_model.field import PRIMES, centres
from world_model.recall import Lens, Sighting

DEPTHS = (0.01, 8.0)
"""Between which walls are told."""
AROUND = 9
"""Lines of sight to a side over which it is asked what a place looks like."""
GAIN, ALIKE = (-1.5, 2.0), 0.3
"""The range of the log of how much brighter or darker it gets, and the log of how much nearer or farther off
it has to be for that."""
BLURRED = (0.7, 1.4)
"""The logs of how much nearer it has to be for a grain to show, and for all of it: twice and four times.
Before that a keyframe tells most of what there is, and what is drawn is wrong more than it was missed."""
DARK = 0.01
"""No place counts as darker than that, in [0, 1]."""
TEXEL = 0.002
"""Side of the smallest cells: as a texel of Doom is wide."""
CELLS = (*((k, k, k) for k in range(4)), (6, 6, 2))
"""How often that is doubled along each axis: grains, and courses as of bricks."""
OFF = 21
"""Texels by which no cell begins at the height of the eye."""
FAINT, STEEP = -6.0, 4.0
"""What the strength of a grain starts with, before `softplus`: nothing that is drawn; and by how much faster
than by its rate it is learned from there."""
LEAST = 0.004
"""What is weaker nobody would see."""
GRAIN = 1.5
"""Up to the log of which a place is brighter or darker for its grain."""
BITS, HASH = 15, (*PRIMES[1:], 668265263)
"""Of a row in the table of noise; and by what the coordinates of a cell are multiplied to find it."""


class Met(NamedTuple):
    """How lines of sight meet what they find, all (F, 1, R, L): known and wall 1 or 0, depths `here` and
    `there`, in the keyframe, with their logs `near` and `far`; and what it looks like around there, in
    [0, 1]: its colour (F, 3, R, L), how bright it is, at least DARK, and the mean of the squares of that."""

    known: Tensor
    wall: Tensor
    here: Tensor
    there: Tensor
    near: Tensor
    far: Tensor
    colour: Tensor
    bright: Tensor
    square: Tensor


def meet(found: Sighting, colour_F3RL: Tensor) -> Met:
    """colour in [-1, 1], as the keyframes show it."""
    known, wall = (x.flatten(0, 1)[:, None].float() for x in (found.known, found.wall))
    here, there = (x.flatten(0, 1)[:, None].clamp(*DEPTHS) for x in (found.depth, found.away))
    light = (colour_F3RL + 1) / 2
    square = light.mean(1, keepdim=True).square()
    # Across and then upwards it is the mean over a square, of a quarter of the sums.
    total = torch.cat((light * known, square * known, known), 1)
    for side in ((1, AROUND), (AROUND, 1)):
        total = F.avg_pool2d(total, side, 1, (side[0] // 2, side[1] // 2))
    mean = total / total[:, -1:].clamp(min=1e-3)
    bright = mean[:, :3].mean(1, keepdim=True).clamp(min=DARK)
    return Met(known, wall, here, there, here.log(), there.log(), mean[:, :3], bright, mean[:, 3:4])


def untold(met: Met, made: Tensor) -> Tensor:
    """Where (F, 1, R, L) more is to be seen than a keyframe shows, 0 to 1: it was much farther off then, or
    the keyframe was `made` up (F, 1, R, L), 1 or 0; decoded latents are soft."""
    first, last = BLURRED
    return met.known * torch.maximum(made, ((met.far - met.near - first) / (last - first)).clamp(0, 1))


class _Asked(nn.Module):
    """A small network that is asked the same of each line of sight."""

    def __init__(self, numbers: int, answers: int, dim: int) -> None:
        super().__init__()
        self.enter, self.middle = nn.Linear(numbers, dim), nn.Linear(dim, dim)
        self.leave = nn.Linear(dim, answers)
        nn.init.zeros_(self.leave.weight)

    def ask(self, numbers: tuple[Tensor, ...]) -> Tensor:
        """What is known of lines of sight, each (F, C, R, L) -> answers (F, A, R, L)."""
        x = torch.cat([each.movedim(1, -1) for each in numbers], -1).to(self.enter.weight.dtype)
        told: Tensor = self.leave(F.silu(self.middle(F.silu(self.enter(x)))))
        return told.float().movedim(-1, 1)


class Light(_Asked):
    """By how much brighter what is seen is from here than it was from where a keyframe was taken.

    Games darken what is far off, dark rooms more than bright ones.
    """

    def __init__(self, dim: int = 32) -> None:
        super().__init__(7, 1, dim)
        nn.init.zeros_(self.leave.bias)

    def forward(self, met: Met) -> Tensor:
        """(F, 1, R, L), a factor. How bright it is around each place tells how dark the room is."""
        far_off = met.far - met.near
        told = self.ask(
            (met.near, met.far, far_off, 0.05 / met.here, 0.05 / met.there, met.wall, met.bright.log())
        )
        # Seen from as far off as it was, it is as bright as it was.
        return (told.clamp(*GAIN) * (far_off.abs() / ALIKE).clamp(max=1)).exp()


class Grain(_Asked):
    """By how much brighter or darker than in its keyframe each place is, drawn by chance."""

    def __init__(self, dim: int = 32) -> None:
        super().__init__(11, len(CELLS), dim)
        nn.init.constant_(self.leave.bias, FAINT / STEEP)

    def strength(self, met: Met, made: Tensor, pixel: float) -> Tensor:
        """(F, K, R, L) of each size of cells, 0 where nothing is `untold`.

        pixel: how wide one of a picture is at a depth of 1.
        """
        off, tint = met.far - met.near, met.colour / met.bright - 1
        rough = (met.square - met.bright.square()).clamp(min=0).sqrt() / met.bright
        told = self.ask((met.near, met.far, off, met.here, met.wall, made, met.bright.log(), rough, tint))
        # Cells no wider than a pixel would flicker.
        side = torch.tensor([TEXEL * 2 ** min(cell) / pixel for cell in CELLS], device=told.device)
        wide = side.log()[:, None, None] - met.near
        strength = F.softplus(STEEP * told) * untold(met, made) * (wide / ALIKE).clamp(0, 1)
        return strength if torch.is_grad_enabled() else F.threshold(strength, LEAST, 0.0)

    def forward(self, strength: Tensor, point_3FHW: Tensor) -> Tensor:
        """A factor (F, 1, H, W) for the brightness of each place in space (3, F, H, W)."""
        much = F.interpolate(strength.contiguous(), point_3FHW.shape[2:], mode="bilinear")
        texel = (point_3FHW / TEXEL + OFF).floor().int()
        sizes, mixed = (texel.new_tensor(x).view(-1, 3, 1, 1, 1) for x in (CELLS, HASH))
        # Products overflow, and wrap around, alike everywhere.
        x, y, up = (texel >> sizes).mul_(mixed).unbind(1)
        index = (x ^ y).bitwise_xor_(up).bitwise_right_shift_(32 - BITS).bitwise_and_(2**BITS - 1)
        noise = _noise(texel.device).index_select(0, index.flatten()).view_as(index)
        total = (much.transpose(0, 1) * noise).sum(0)
        return total.clamp(-GRAIN, GRAIN).exp()[:, None]


@cache
def _noise(device: torch.device) -> Tensor:
    """Unit noise (2 ** BITS,), the same always; made once, so not to be changed."""
    with torch.inference_mode(False):
        return torch.randn(2**BITS, generator=torch.Generator().manual_seed(0), device="cpu").to(device)


def brighter(paint: Tensor, factor: Tensor, known: Tensor) -> Tensor:
    """Colours in [-1, 1] as much brighter, and 0 where nothing is known."""
    return ((paint + 1) * factor - 1).clamp(max=1) * known


def points(pose_F3: Tensor, depth_FHW: Tensor, lens: Lens, aspect: float) -> Tensor:
    """Where in space (3, F, H, W) the lines of sight of pictures end that are so long; upwards from the eye.

    aspect: height of the picture by its width.
    """
    rows, columns = depth_FHW.shape[1:]
    across = centres(columns, depth_FHW.device) * lens.spread
    down = centres(rows, depth_FHW.device)[:, None] * (aspect * lens.spread)
    cos, sin = (x[:, None, None] for x in (pose_F3[:, 2].cos(), pose_F3[:, 2].sin()))
    x = pose_F3[:, 0, None, None] + depth_FHW * (cos + across * sin)
    y = pose_F3[:, 1, None, None] + depth_FHW * (sin - across * cos)
    return torch.stack((x, y, -depth_FHW * down))
