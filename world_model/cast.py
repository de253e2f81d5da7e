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

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from world_model.config import CastConfig
from world_model.field import centres, compass
from world_model.recall import into_view, onto_plan

TALLER = 1.2
"""How much higher than wide Doom's pixels are shown: heights on the picture are longer by that."""
NEAREST, FARTHEST = 0.04, 2.5
"""Between which depths things are painted."""
SIGHT = 24
"""Points at which a line of sight is asked whether it is free."""
SHADES = 8
"""Depths for which is known how dark things are there."""
PAINT_RATE = 10.0
"""Each look is seldom seen, so its paint learns this much faster."""
SHOWN = 10
"""At most so many things are painted, the nearest."""
AROUND = (0.06, 0.12)
"""Distances at which a thing feels for walls."""
AIM = 0.045
"""Half extents off the line of fire within which something may be hit."""

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
    def lowest(self) -> float:
        """The lowest row of the view that counts, above a status bar: what stands near ends below it."""
        return min(0.97, 4 * self.horizon - 1) - 0.04

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
            inside_x, inside_y = across.abs() < 1, down.abs() < 1
            if not bool(inside_x.any()) or not bool(inside_y.any()):
                continue
            across, down, x = across[inside_x], down[inside_y], x[inside_x]
            at = torch.stack(torch.broadcast_tensors(across[None], down[:, None]), -1)[None]
            paint = self.painted(things.look[b, n : n + 1], ahead[b, n : n + 1])
            seen = F.grid_sample(paint, at, padding_mode="zeros", align_corners=False)[0]
            depth = ahead[b, n].expand_as(x)
            ends = onto_plan(depth, x * camera.spread * depth, pose_B3[b])
            free = free_sight(walls, pose_B3[b, :2].expand_as(ends), ends)
            seen = seen * free
            first_row, first_column = (int(i.to(torch.uint8).argmax()) for i in (inside_y, inside_x))
            behind = overlay[b, :, first_row:, first_column:][:, : len(down), : len(x)]
            behind.copy_(behind * (1 - seen[3:]) + seen)
        return overlay


def _far_to_near(shown: Tensor, ahead: Tensor) -> list[tuple[int, int]]:
    """Dream and slot of what is painted, the nearest of each dream last."""
    found = []
    for b in range(len(shown)):
        slots = shown[b].nonzero().flatten()
        order = slots[ahead[b, slots].argsort(descending=True)].tolist()
        found += [(b, n) for n in order[-SHOWN:]]
    return found


class Odds(NamedTuple):
    """What may happen in a tick, as logits: look (B, N, L + 2), of which the last means gone; way (B, N, M);
    child (B, N, K + 1), the kind that comes out of a thing, 0 for none; and birth (B, G, K + 1), what appears
    at each gate. hidden (B, N, D) as it is afterwards."""

    look: Tensor
    way: Tensor
    child: Tensor
    birth: Tensor
    hidden: Tensor


class Behaviour(nn.Module):
    """What each thing does next, by what it is, where the player is and what the player does."""

    def __init__(self, config: CastConfig, actions: int, phases: int) -> None:
        super().__init__()
        self.config = config
        kinds, looks, dim = config.kinds, config.looks, config.hidden
        self.embed_kind = nn.Embedding(kinds + 1, 8)
        self.embed_look = nn.Embedding(looks + 2, 16)  # the last one is "not seen"
        self.embed_way = nn.Embedding(config.ways, 8)
        self.embed_action = nn.Embedding(actions, 12)
        self.embed_phase = nn.Embedding(phases, 8)
        told = 8 + 16 + 8 + 12 + 8 + 12 + 8 * len(AROUND)
        self.enter = nn.Sequential(nn.Linear(told, 96), nn.SiLU())
        self.cell = nn.GRUCell(96, dim)
        self.think = nn.Sequential(nn.Linear(96 + dim, 160), nn.SiLU(), nn.Linear(160, 160), nn.SiLU())
        self.look, self.way = nn.Linear(160, looks + 2), nn.Linear(160, config.ways)
        self.child = nn.Linear(160, kinds + 1)
        self.gate = nn.Sequential(nn.Linear(kinds + 2, 32), nn.SiLU(), nn.Linear(32, kinds + 1))
        self.ways: Tensor
        self.gates: Tensor
        self.offset: Tensor
        self.first: Tensor
        self.kind_of: Tensor
        self.register_buffer("ways", torch.zeros(config.ways, 3))
        """How things move in a tick: (M, 3)."""
        self.register_buffer("gates", torch.zeros(config.gates, 3))
        """Where things appear: (G, 3)."""
        self.register_buffer("offset", torch.zeros(kinds + 1, 3))
        """Where what comes out of a thing is: toward the player, to the left seen from there, and up."""
        self.register_buffer("first", torch.zeros(kinds + 1))
        """The look with which each kind appears."""
        self.register_buffer("kind_of", torch.zeros(looks + 1))
        """Whose look each is."""
        self.solid: Tensor
        self.register_buffer("solid", torch.zeros(kinds + 1))
        """How near the player gets to the middle of each kind; 0 for what is no hindrance."""

    def forward(
        self, things: Things, seen: Tensor, pose_B3: Tensor, act_B: Tensor, phase_B: Tensor, walls: Walls
    ) -> Odds:
        """seen (B, N): what is in sight; how other things look nobody knows in recordings."""
        told = self.tell(things, seen, pose_B3, act_B, phase_B, walls)
        x = self.enter(told)
        hidden = self.cell(x.flatten(0, 1), things.hidden.flatten(0, 1)).view_as(things.hidden)
        h = self.think(torch.cat((x, hidden), -1))
        return Odds(self.look(h), self.way(h), self.child(h), self.gate(self.counts(things)), hidden)

    def counts(self, things: Things) -> Tensor:
        """What a gate is told: how many there are of each kind, and how near the nearest thing and the next
        are (B, G, K + 2)."""
        kinds = self.config.kinds
        count = F.one_hot(things.kind, kinds + 1)[..., 1:].sum(1).float() / 4
        away = (things.at[:, None, :, :2] - self.gates[None, :, None, :2]).norm(dim=-1)
        away = away.masked_fill(things.kind[:, None] == 0, 4.0).clamp(max=4.0)
        near = away.topk(min(2, away.shape[-1]), largest=False).values
        near = F.pad(near, (0, 2 - near.shape[-1]), value=4.0)
        return torch.cat((count[:, None].expand(-1, len(self.gates), -1), near), -1)

    def tell(
        self, things: Things, seen: Tensor, pose_B3: Tensor, act_B: Tensor, phase_B: Tensor, walls: Walls
    ) -> Tensor:
        """What the network is told of each thing: (B, N, ...)."""
        xy = things.at[..., :2]
        ahead, right = into_view(xy, pose_B3[:, None])
        to_player = pose_B3[:, None, :2] - xy
        away = to_player.norm(dim=-1, keepdim=True)
        toward = to_player / away.clamp(min=1e-4)
        there = things.kind > 0
        others = xy[:, None] - xy[:, :, None]
        distance = others.norm(dim=-1).masked_fill(~there[:, None], 9.0)
        distance = distance + 9.0 * torch.eye(xy.shape[1], device=xy.device)
        nearest = distance.min(-1)
        other = others.gather(2, nearest.indices[..., None, None].expand(-1, -1, 1, 2))[:, :, 0]
        other = torch.where(nearest.values[..., None] < 0.3, other / 0.1, 0.0)
        aimed = there & seen & (right.abs() < AIM)
        front = ahead.masked_fill(~aimed, 9.0)
        first = aimed & (front <= front.amin(1, keepdim=True))
        around = torch.cat([compass(radius, xy.device) for radius in AROUND])
        felt = walls(xy[..., None, :] + around).detach().clamp(-0.04, 0.04) / 0.04
        numbers = torch.cat(
            (
                torch.stack((ahead, right), -1) / 0.5,
                away,
                0.1 / away.clamp(min=0.02),
                toward,
                other,
                (right[..., None] / AIM).clamp(-2, 2),
                first[..., None].float(),
                seen[..., None].float(),
                things.at[..., 2:] / 0.05,
            ),
            -1,
        )
        look = torch.where(seen, things.look, self.config.looks + 1)
        player = torch.cat((self.embed_action(act_B), self.embed_phase(phase_B)), -1)
        return torch.cat(
            (
                numbers,
                felt,
                self.embed_kind(things.kind),
                self.embed_look(look),
                self.embed_way(things.way),
                player[:, None].expand(-1, xy.shape[1], -1),
            ),
            -1,
        )

    def beside(self, things: Things, start_B2: Tensor, end_B2: Tensor) -> Tensor:
        """Where the player ends who goes from `start` to `end`: no nearer to what is solid than one gets, or
        than before."""
        xy, near = things.at[..., :2], self.solid[things.kind]
        off = end_B2[:, None] - xy
        away = off.norm(dim=-1)
        least = torch.minimum(near, (start_B2[:, None] - xy).norm(dim=-1))
        push = off / away.clamp(min=1e-6)[..., None] * (least - away).clamp(min=0)[..., None]
        return end_B2 + push.sum(1)

    def empty(self, batch: int, device: torch.device | str) -> Things:
        """No things at all."""
        slots = torch.zeros(batch, self.config.slots, dtype=torch.long, device=device)
        at = torch.zeros(batch, self.config.slots, 3, device=device)
        return Things(slots, slots, slots, at, torch.zeros(*at.shape[:2], self.config.hidden, device=device))

    def draw(self, things: Things, odds: Odds, pose_B3: Tensor, chance: Tensor) -> Things:
        """The things after a tick, drawn by the odds; chance (B, N + G, 3) in [0, 1)."""
        slots = things.kind.shape[1]
        own = chance[:, :slots]
        there = things.kind > 0
        look = pick(odds.look, own[..., 0])
        gone = look == self.config.looks + 1
        look = look.clamp(max=self.config.looks)
        way = pick(odds.way, own[..., 1])
        kind = torch.where(look > 0, self.kind_of[look].long(), things.kind)
        keep = there & ~gone
        at = things.at + self.ways[way]
        after = Things(
            torch.where(keep, kind, 0),
            torch.where(keep, look, 0),
            torch.where(keep, way, 0),
            torch.where(keep[..., None], at, 0.0),
            torch.where(keep[..., None], odds.hidden, 0.0),
        )
        child = torch.where(there, pick(odds.child, own[..., 2]), 0)
        toward = F.normalize(pose_B3[:, None, :2] - things.at[..., :2], dim=-1)
        left = torch.stack((-toward[..., 1], toward[..., 0]), -1)
        off = self.offset[child]
        beside = things.at[..., :2] + off[..., :1] * toward + off[..., 1:2] * left
        born_at = torch.cat((beside, things.at[..., 2:] + off[..., 2:]), -1)
        birth = pick(odds.birth, chance[:, slots:, 0])
        gates = self.gates.expand(len(birth), -1, -1)
        return self.add(after, torch.cat((child, birth), 1), torch.cat((born_at, gates), 1))

    def add(self, things: Things, kind_BK: Tensor, at_BK3: Tensor, look_BK: Tensor | None = None) -> Things:
        """With what appears in empty slots; kind 0 is nothing, and what finds no slot is not there."""
        if not bool((kind_BK > 0).any()):
            return things
        look_BK = self.first[kind_BK].long() if look_BK is None else look_BK
        parts = [part.clone() for part in things]
        for b, k in (kind_BK > 0).nonzero().tolist():
            free = (parts[0][b] == 0).nonzero()
            if len(free):
                n = int(free[0])
                parts[0][b, n], parts[1][b, n], parts[3][b, n] = kind_BK[b, k], look_BK[b, k], at_BK3[b, k]
                parts[2][b, n], parts[4][b, n] = 0, 0.0
        return Things(*parts)


def pick(logits: Tensor, chance: Tensor) -> Tensor:
    """An index (...) by its odds, for chances (...) in [0, 1)."""
    odds = logits.float().softmax(-1).cumsum(-1)
    return (odds < chance[..., None] * odds[..., -1:]).sum(-1).clamp(max=logits.shape[-1] - 1)


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
ANCHOR = 0.03
"""Height over its foot at which a thing is in a cell."""


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
CLEAR = 0.5
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
