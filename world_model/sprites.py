"""How things look: the paint of every look, on an upright board that faces the player.

Axes: B dreams, N slots, L looks. Lengths are in half extents of the map.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from world_model.config import CastConfig
from world_model.field import centres
from world_model.recall import into_view, onto_plan
from world_model.things import FARTHEST, NEAREST, Camera, Things, Walls, free_sight

SHADES = 8
"""Depths for which is known how dark things are there."""
PAINTED = (-1.0, -1.0, -1.0, -6.0), (1.0, 1.0, 1.0, 6.0)
"""Between which numbers paint is: of colours, and of the logit of how opaque it is."""
PAINT_RATE = 10.0
"""Each look is seldom seen, so its paint learns this much faster."""
SHOWN = 10
"""At most so many things are painted, the nearest."""


class Sprites(nn.Module):
    """The paint of every look, and how large the board of every kind is."""

    def __init__(self, config: CastConfig) -> None:
        super().__init__()
        self.config = config
        self.paint = nn.Parameter(torch.zeros(config.looks + 1, 4, config.texels, config.texels))
        """RGB in [-1, 1], and the logit of how opaque it is."""
        self.paint.rate = PAINT_RATE  # type: ignore[attr-defined]
        self.shade = nn.Parameter(torch.zeros(SHADES))
        """Log of how much darker things are at depths evenly spread, in the log, over what is painted."""
        self.board: Tensor
        self.register_buffer("board", torch.ones(config.kinds + 1, 3))
        """Of each kind: half its width, its lower and upper edge over the thing's foot."""

    def painted(self, look: Tensor, depth: Tensor) -> Tensor:
        """Looks (K,) at depths (K,) -> colour times opacity, in [0, 1], and opacity: (K, 4, S, S)."""
        paint = self.paint[look].float()
        # What is hardly there is not there, and what nearly hides all hides it.
        opaque = ((torch.sigmoid(paint[:, 3:]) - 0.1) / 0.8).clamp(0, 1) * (look > 0)[:, None, None, None]
        low, high = (torch.tensor(d, device=depth.device).log() for d in (NEAREST, FARTHEST))
        at = ((depth.clamp(NEAREST, FARTHEST).log() - low) / (high - low) * (SHADES - 1)).clamp(0, SHADES - 1)
        first = at.floor().long().clamp(max=SHADES - 2)
        part = at - first
        shade = (self.shade[first] * (1 - part) + self.shade[first + 1] * part).exp()
        colour = (paint[:, :3].clamp(-1, 1) + 1) / 2 * shade[:, None, None, None]
        return torch.cat((colour.clamp(0, 1) * opaque, opaque), 1)

    @torch.no_grad()
    def forward(
        self, things: Things, pose_B3: Tensor, camera: Camera, walls: Walls, size: tuple[int, int]
    ) -> Tensor:
        """What of the things is seen: (B, 4, H, W), colour times opacity in [0, 1] and opacity."""
        rows, columns = size
        overlay = torch.zeros(len(pose_B3), 4, rows, columns, device=pose_B3.device)
        ahead, right = into_view(things.at[..., :2], pose_B3[:, None])
        board = self.board[things.kind]
        half = camera.column(board[..., 0], ahead)
        middle = camera.column(right, ahead)
        shown = (things.kind > 0) & (things.look > 0) & (ahead > NEAREST) & (ahead < FARTHEST)
        shown = shown & (middle - half < 1) & (middle + half > -1)
        low, high = (camera.row(things.at[..., 2] + board[..., k], ahead) for k in (1, 2))
        for b, n in _far_to_near(shown, ahead):
            left, top = middle[b, n] - half[b, n], high[b, n]
            wide, tall = 2 * half[b, n], low[b, n] - high[b, n]
            x, y = centres(columns, ahead.device), centres(rows, ahead.device)
            across, down = (x - left) / wide * 2 - 1, (y - top) / tall * 2 - 1
            inside_x, inside_y = across.abs() < 1, (down.abs() < 1) & (y < camera.bottom)
            if not bool(inside_x.any()) or not bool(inside_y.any()):
                continue
            across, down, x = across[inside_x], down[inside_y], x[inside_x]
            at = torch.stack(torch.broadcast_tensors(across[None], down[:, None]), -1)[None]
            paint = self.painted(things.look[b, n : n + 1], ahead[b, n : n + 1])
            seen = F.grid_sample(paint, at, mode="nearest", padding_mode="zeros", align_corners=False)[0]
            depth = ahead[b, n].expand_as(x)
            ends = onto_plan(depth, x * camera.spread * depth, pose_B3[b])
            free = free_sight(walls, pose_B3[b, :2].expand_as(ends), ends)
            seen = seen * free
            first_row, first_column = (int(i.to(torch.uint8).argmax()) for i in (inside_y, inside_x))
            behind = overlay[b, :, first_row:, first_column:][:, : len(down), : len(x)]
            behind.copy_(behind * (1 - seen[3:]) + seen)
        return overlay


def to_bytes(paint: Tensor) -> Tensor:
    """Paint (..., 4, S, S) as it is kept in a file, uint8: pictures need no more."""
    low, high = paint.new_tensor(PAINTED)[..., None, None]
    return ((paint - low) / (high - low) * 255).round().clamp(0, 255).to(torch.uint8)


def from_bytes(paint: Tensor) -> Tensor:
    """The inverse, in float."""
    low, high = torch.tensor(PAINTED, device=paint.device)[..., None, None]
    return low + paint.float() / 255 * (high - low)


def _far_to_near(shown: Tensor, ahead: Tensor) -> list[tuple[int, int]]:
    """Dream and slot of what is painted, the nearest of each dream last."""
    found = []
    for b in range(len(shown)):
        slots = shown[b].nonzero().flatten()
        order = slots[ahead[b, slots].argsort(descending=True)].tolist()
        found += [(b, n) for n in order[-SHOWN:]]
    return found
