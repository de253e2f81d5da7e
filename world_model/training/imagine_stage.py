"""Stage `imagine`: what there may be where nobody has looked.

Learned from real views of which keyframes of the same episode show a part: those that were held some ticks
before the player came there, or only some of these. What is seen from where is worked out once for each view
and kept for a while; noise is new in each step.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from world_model.data.dataset import LatentDataset
from world_model.data.remembered import Held
from world_model.dream import DreamEngine
from world_model.dynamics import NOISE_STD
from world_model.imagination import Imagination
from world_model.model import WorldModel
from world_model.place import compose
from world_model.precision import mixed_precision, native_dtype
from world_model.recall import Views
from world_model.recollection import Recollection
from world_model.tokenizer import to_uint8
from world_model.training.pictures import save_rows

FRESH, VIEWS, KEPT = 8, 64, 12288
"""Views that are worked out for a step, that it learns from, and that are held to learn from again."""
LATER = (4, 12, 32, 96)
"""Ticks after which a view is seen that keyframes were held for: who walks on sees less of what they show."""
FORGOTTEN = 0.7
"""Of keyframes at most so many are taken away."""
MADE_UP = 0.3
"""Share of views whose keyframes count as made up."""
POSE_ERROR = (0.002, 0.002, 0.005)
EARLY = 0.05
"""Noise levels count by how much of a step towards the clean latent is left, but no more than from here."""


@dataclass(frozen=True)
class ImagineBatch:
    """Views: latents (F, C, h, w), the poses (F, 3) they are seen from, what was held, one tick each, and at
    which (episode, tick) they are."""

    z: Tensor
    stand: Tensor
    remembered: Held
    at: list[tuple[int, int]]


class ImagineStage:
    """Trains the imagination of a world that recalls."""

    name = "imagine"

    def __init__(self, world: WorldModel, data: LatentDataset, held_out: LatentDataset, device: str) -> None:
        self.device = torch.device(device)
        self._world, self._data, self._held_out = world, data, held_out
        world.requires_grad_(False)
        recollection, imagination = world.dynamics.recollection, world.imagination
        assert recollection is not None and imagination is not None
        self._recollection: Recollection = recollection
        self._imagination: Imagination = imagination.requires_grad_(True)
        self.model: nn.Module = imagination
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._told: list[Tensor] = []
        self._latents: list[Tensor] = []
        self._next = 0

    def batch(self, rng: np.random.Generator, done: float) -> ImagineBatch:
        return _draw(self._data, rng, FRESH)

    def loss(self, batch: ImagineBatch, done: float) -> tuple[Tensor, dict[str, float]]:
        told, share = self._look(batch)
        self._keep(told, batch.z.to(self.device))
        some = torch.randint(len(self._told), (VIEWS,)).tolist()
        told, z = (torch.stack([kept[i] for i in some]).float() for kept in (self._told, self._latents))
        noise = NOISE_STD * torch.randn_like(z)
        tau = torch.sigmoid(torch.randn(len(z), device=z.device))
        t = tau[:, None, None, None]
        with mixed_precision(self.device.type):
            clean = self._imagination(t * z + (1 - t) * noise, tau, told)
        miss = (clean - z).square().mean((1, 2, 3))
        loss = (miss / (1 - tau).clamp(min=EARLY)).mean()
        return loss, {"miss": miss.mean().item(), "known": share}

    def _keep(self, told: Tensor, z: Tensor) -> None:
        for one, latent in zip(told.half(), z.half(), strict=True):
            if len(self._told) < KEPT:
                self._told.append(one.clone())
                self._latents.append(latent.clone())
            else:
                self._told[self._next], self._latents[self._next] = one.clone(), latent.clone()
                self._next = (self._next + 1) % KEPT

    @torch.no_grad()
    def _look(self, batch: ImagineBatch) -> tuple[Tensor, float]:
        """What keyframes tell of the views, and which part of these they show."""
        views = batch.remembered.to(self.device).views
        stand = batch.stand.to(self.device)
        near = compose(stand, torch.randn_like(stand) * stand.new_tensor(POSE_ERROR))
        glimpse = self._recollection.glimpse(self._worn(views), near)
        return glimpse.told, float(glimpse.found.known.float().mean())

    def _worn(self, views: Views) -> Views:
        """Keyframes as a dream has them: some forgotten, some made up."""
        batch, count = views.pose.shape[:2]
        lost = torch.rand(batch, 1, count, device=views.pose.device)
        lost = lost < FORGOTTEN * torch.rand(batch, 1, 1, device=lost.device)
        made_up = torch.rand(batch, 1, device=lost.device) < MADE_UP
        return views._replace(held=views.held & ~lost, imagined=made_up.expand(-1, count).float())

    @torch.no_grad()
    def preview(self, path: Path) -> dict[str, float]:
        """Real views above what keyframes show of them and two that were made up of that."""
        batch = _draw(self._held_out, np.random.default_rng(0), 16)
        torch.manual_seed(0)
        told, share = self._look(batch)
        engine = DreamEngine(self._world, native_dtype(self.device.type))
        with mixed_precision(self.device.type):
            noise = (torch.randn(batch.z.shape, device=self.device) for _ in range(2))
            made = [self._imagination.sample(x, told) for x in noise]
        seen = to_uint8(told[:, :3].repeat_interleave(4, 2).repeat_interleave(4, 3))
        real = np.stack([self._held_out.episodes[i].frames[t] for i, t in batch.at])
        rows = [real, seen, *(engine.decode(z) for z in made)]
        save_rows(path, [list(row[i : i + 8]) for i in (0, 8) for row in rows], shrink=2)
        spread = float((made[0] - made[1]).std())
        return {"known": share, "spread": spread, "std": float(made[0].std() / batch.z.std())}


def _draw(data: LatentDataset, rng: np.random.Generator, count: int) -> ImagineBatch:
    parts, shortest = [], min(map(len, data.episodes)) - 1
    for later in (min(later, shortest) for later in LATER):
        places = data.places(rng, count // len(LATER), later)
        held = data.held(places, later)
        assert held is not None
        views = held.views._replace(held=held.views.held[:, :1])  # no more than was held when the walk began
        parts.append((places, later, held._replace(views=views)))
    ends = [(i, s + later) for places, later, _ in parts for i, s in places]
    helds = [held for _, _, held in parts]
    views = Views(
        *(torch.cat([getattr(h.views, f) for h in helds]) for f in ("image", "pose", "wall", "held"))
    )
    return ImagineBatch(
        torch.from_numpy(np.stack([data.latents[i][t] for i, t in ends])).float(),
        data.remembered.stands(ends),
        Held(views, torch.cat([h.z for h in helds])),
        ends,
    )
