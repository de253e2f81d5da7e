"""What things do next, by odds that are learned; the dream draws.

Axes: B dreams, N slots, L looks, G gates. Lengths are in half extents of the map.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from world_model.config import CastConfig
from world_model.field import compass
from world_model.recall import into_view
from world_model.things import Things, Walls

AROUND = (0.06, 0.12)
"""Distances at which a thing feels for walls."""
AIM = 0.045
"""Half extents off the line of fire within which something may be hit."""


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
