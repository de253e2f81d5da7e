"""Things that move, come and go, kept apart from the picture: where they are, how they look, what they do.

A trunk that predicts latents answers chance with a mean, and a mean of monsters is none. Where the source
tells what there is in its map, things are therefore kept as such, in slots, and three small networks are
trained on recordings:

- `Sprites`: what each look of each kind is painted like, on an upright board that faces the player;
- `Behaviour`: what each thing does next, where new ones appear. It tells odds, and the dream draws;
- `Spotter`: which things a picture shows, for a dream that begins with real frames.

As with the map, geometry says where something is seen; everything else is learned. Nothing outside the
model sets a thing: what the source tells is for training alone.

Axes: B dreams, N slots, L looks. Lengths are in half extents of the map; a place is x, y and the height
z over the floor.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from world_model.behaviour import Behaviour
from world_model.config import CastConfig
from world_model.recall import into_view, onto_plan
from world_model.sprites import Sprites
from world_model.things import Camera, Things, Walls, in_sight


class Spots(NamedTuple):
    """What each cell of a grid over a picture shows: kind (F, R, C, K + 1) and look of its kind (F, R, C, J)
    as logits, aside (F, R, C), in half cells, log of the depth of it and height over the floor."""

    kind: Tensor
    look: Tensor
    aside: Tensor
    depth: Tensor
    height: Tensor


HEIGHT_UNIT = 0.05
SPOTTED = 8
"""Pixels to a side of a cell."""


class Spotter(nn.Module):
    """Pictures (F, 3, H, W) in [-1, 1] -> `Spots`."""

    def __init__(self, config: CastConfig, dim: int = 32, wide: int = 64) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(48, dim, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(dim, dim, 3, padding=1),
            nn.SiLU(),
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * dim, wide, 1),
            nn.SiLU(),
            nn.Conv2d(wide, wide, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(wide, wide, 3, padding=2, dilation=2),
            nn.SiLU(),
            nn.Conv2d(wide, wide, 3, padding=1),
            nn.SiLU(),
        )
        self.out = nn.Conv2d(wide, config.kinds + 1 + config.looks_each + 3, 1)
        self.residents: Tensor
        self.register_buffer("residents", torch.zeros(config.slots, 4))
        """Kind and place of what is always there, in sight or not; kind 0 is nothing."""

    def forward(self, picture_F3HW: Tensor) -> Spots:
        told = self.out(self.layers(picture_F3HW)).float().permute(0, 2, 3, 1)
        kind, look, rest = told.split((self.config.kinds + 1, self.config.looks_each, 3), -1)
        return Spots(kind, look, rest[..., 0], rest[..., 1], HEIGHT_UNIT * rest[..., 2])


class Found(NamedTuple):
    """Things in a picture: kind (M,), look (M,), at (M, 3)."""

    kind: Tensor
    look: Tensor
    at: Tensor


SURE = 0.5
"""Probability from which on something counts as found."""
SAME_PLACE = 0.1
"""What is found nearer than this to a thing that is known is that thing."""
CLEAR = 0.9
"""Depth up to which something that is not found is not there."""
WATCHED = 16
"""Last frames of a context that are searched for things."""


class Cast(nn.Module):
    """All that a world knows of its things."""

    def __init__(self, config: CastConfig, actions: int, phases: int) -> None:
        super().__init__()
        self.config = config
        self.sprites = Sprites(config)
        self.behaviour = Behaviour(config, actions, phases)
        self.spotter = Spotter(config)

    def begin(self, batch: int, device: torch.device | str) -> Things:
        """What there is before anything was seen."""
        things = self.behaviour.empty(batch, device)
        kind = self.spotter.residents[:, 0].long().expand(batch, -1)
        return self.behaviour.add(things, kind, self.spotter.residents[:, 1:].expand(batch, -1, -1))

    def step(
        self,
        things: Things,
        pose_B3: Tensor,
        act_B: Tensor,
        phase_B: Tensor,
        camera: Camera,
        walls: Walls,
        chance: Tensor,
    ) -> Things:
        """The things a tick later; chance (B, N + G, 3) in [0, 1). pose: the player's before the tick."""
        seen = in_sight(things, pose_B3, camera, walls)
        odds = self.behaviour(things, seen, pose_B3, act_B, phase_B, walls)
        return self.behaviour.draw(things, odds, pose_B3, chance)

    def watch(
        self, things: Things, picture_B3HW: Tensor, pose_B3: Tensor, camera: Camera, walls: Walls
    ) -> Things:
        """The things as a real picture, taken from a pose, shows them: what is found is there, and what would
        be seen and is not found is not."""
        spots = self.spotter(picture_B3HW)
        sight = in_sight(things, pose_B3, camera, walls)
        ahead, right = into_view(things.at[..., :2], pose_B3[:, None])
        sight = sight & (ahead < CLEAR) & (camera.column(right, ahead).abs() < 0.9)
        resident = self.spotter.residents[:, 0] > 0
        parts = [part.clone() for part in things]
        kind, look, _, at, _ = parts
        extra = []
        for b in range(len(pose_B3)):
            found = self.found(Spots(*(s[b] for s in spots)), pose_B3[b], camera)
            left = set(range(len(found.kind)))
            for n in kind[b].nonzero().flatten().tolist():
                near = [(float((found.at[m, :2] - at[b, n, :2]).norm()), m) for m in left]
                distance, m = min(near, default=(9.0, -1))
                if distance < SAME_PLACE:
                    left.discard(m)
                    kind[b, n], look[b, n] = found.kind[m], found.look[m]
                    if not bool(resident[n]):
                        at[b, n] = (at[b, n] + found.at[m]) / 2
                elif bool(sight[b, n]):
                    look[b, n] = 0
                    if not bool(resident[n]):
                        kind[b, n] = 0
            extra.append(Found(*(f[sorted(left)] for f in found)))
        most = max((len(e.kind) for e in extra), default=0)
        padded = [Found(*(F.pad(f, (0, 0) * (f.ndim - 1) + (0, most - len(f))) for f in e)) for e in extra]
        new = Found(*(torch.stack(p) for p in zip(*padded, strict=True)))
        return self.behaviour.add(Things(*parts), new.kind, new.at, new.look)

    def found(self, spots: Spots, pose_3: Tensor, camera: Camera) -> Found:
        """What a picture's spots (R, C, ...) are: the surest of neighbouring cells of a kind."""
        odds = spots.kind.softmax(-1)
        sure, kind = odds[..., 1:].max(-1)
        most = F.max_pool2d(sure[None, None], 3, 1, 1)[0, 0]
        row, column = ((sure >= SURE) & (sure >= most)).nonzero(as_tuple=True)
        columns = sure.shape[1]
        kind = kind[row, column] + 1
        look = 1 + (kind - 1) * self.config.looks_each + spots.look[row, column].argmax(-1)
        ahead = spots.depth[row, column].exp()
        x = (column + 0.5 + spots.aside[row, column] / 2) * 2 / columns - 1
        xy = onto_plan(ahead, x * camera.spread * ahead, pose_3)
        z = spots.height[row, column].clamp(min=0)
        return Found(kind, look, torch.cat((xy, z[:, None]), -1))
