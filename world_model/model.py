"""All weights of a world, and what they are asked together.

Axes: B dreams, C channels, h w rows and columns of the latent.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from world_model.audio import AudioModel
from world_model.cast import Cast
from world_model.config import WorldConfig
from world_model.dynamics import SEEN_CHANNELS, Dynamics, Retrieved, Step, TrunkOutput
from world_model.gauges import Gauges
from world_model.imagination import Imagination
from world_model.packing import pack
from world_model.settle import Aligner
from world_model.things import Camera, Things
from world_model.tokenizer import Tokenizer

AT_REST = 2e-4
"""Half extents and radians a tick: a tenth of a map unit, a fortieth of a pixel."""
CARRIED_AT_ONCE = 16
"""Latents that are painted and looked at again in one piece."""


class WorldModel(nn.Module):
    """All weights of a world: tokenizer, dynamics and, where it has sound, audio."""

    def __init__(self, config: WorldConfig) -> None:
        super().__init__()
        self.config = config
        tok = config.tokenizer
        self.tokenizer = Tokenizer(tok)
        self.dynamics = Dynamics(
            config.dynamics, tok.latent_dim, tok.grid, len(config.actions), config.phases
        )
        placed = config.dynamics.pose or (config.dynamics.recall and config.dynamics.align)
        self.aligner = Aligner(tok.latent_dim, tok.grid) if placed else None
        self.imagination: Imagination | None = None
        if config.dynamics.recall and config.dynamics.imagination:
            self.imagination = Imagination(tok.latent_dim, tok.grid, config.dynamics.imagination)
        self.audio: AudioModel | None = None
        if config.audio is not None:
            features = config.dynamics.conv_dim + SEEN_CHANNELS
            self.audio = AudioModel(config.audio, features, tok.latent_dim, len(config.actions))
        self.cast: Cast | None = None
        if config.cast is not None:
            self.cast = Cast(config.cast, len(config.actions), config.phases)
        self.gauges: Gauges | None = None
        if config.cast is not None and config.cast.gauges:
            self.gauges = Gauges(config.cast, len(config.actions), config.phases)

    @property
    def camera(self) -> Camera:
        """How the pictures of a world with a map are taken."""
        place = self.dynamics.place
        assert place is not None, "only a map knows how its pictures are taken"
        surfaces, (rows, columns) = place.map.surfaces, place.map.grid
        return Camera(surfaces.spread.float(), -surfaces.heights[0], surfaces.horizon, rows / columns)

    @torch.no_grad()
    def carried(self, z: Tensor, motion: Tensor) -> Tensor | None:
        """Latents (..., C, h, w) as the motions (..., 3) leave them; None in a world that does not carry."""
        carry, tokenizer = self.dynamics.carry, self.tokenizer
        if carry is None:
            return None
        parts = zip(*(x.flatten(0, -k).split(CARRIED_AT_ONCE) for x, k in ((z, 4), (motion, 2))), strict=True)
        moved = [
            tokenizer.encode(carry(tokenizer.decode(part), part, by).clamp(-1, 1).to(part.dtype))
            for part, by in parts
        ]
        return torch.cat(moved).float().view(z.shape)

    def paint(self, noise: Tensor, out: TrunkOutput, z: Tensor, motion: Tensor, steps: int) -> Tensor:
        """The head's next latents (B, C, h, w) after `z`. What it keeps for one who stands still is kept as
        it is: to look at the same picture again and again would slowly make something else of it."""
        kept = None
        if self.dynamics.carry is not None:
            rests = (motion.abs() < AT_REST).all(-1)[:, None, None, None]
            kept = torch.where(rests, z.float(), out.carried)
        return self.dynamics.head.sample(noise, out.mean, out.carried, out.features, steps, kept)

    def overlay(self, things: Things, pose: Tensor) -> Tensor | None:
        """What is seen of things from poses (B, 3), over the map: (B, 4, H, W), see `Sprites`."""
        place = self.dynamics.place
        if self.cast is None or place is None:
            return None
        size = (self.config.tokenizer.height, self.config.tokenizer.width)
        with torch.autocast(pose.device.type, enabled=False):
            seen: Tensor = self.cast.sprites(
                things, pose.float(), self.camera, place.map.surfaces.walls, size
            )
        return seen

    def think(
        self, z: Tensor, act: Tensor, phase: Tensor, step: Step, retrieved: Retrieved | None
    ) -> TrunkOutput:
        """What the trunk makes of a clip from an empty state; see `Trunk.forward`."""
        out: TrunkOutput = self.dynamics.trunk(z, act, phase, step, retrieved, self.carried(z, step.motion))
        return out

    def for_inference(self, dtype: torch.dtype) -> WorldModel:
        """Kernels and matrices in `dtype`; what decides about the recurrent state, the stride by which places
        are reckoned, and sound, in fp32."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.to(dtype)
        if self.imagination is not None:
            self.imagination.to(dtype)
        if self.audio is not None:
            self.audio.float()
        if self.cast is not None:
            self.cast.behaviour.float()
        if self.gauges is not None:
            self.gauges.float()
        stride = self.dynamics.stride
        if stride is not None:
            stride.float()
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        pack(self)
        if self.imagination is not None:
            self.imagination.prepare()
        return self.eval().requires_grad_(False)
