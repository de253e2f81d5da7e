"""Sound, tick by tick: a codec with one latent a tick, and the head that imagines the next one.

The codec is causal. A latent stands for `frame` = `samples` + `overlap` samples: its own tick and the end of
the one before. What is decoded is faded in and out over the overlap and added, so that neighbouring ticks do
not click, and comes `overlap` samples late, so that both sides of a seam know what they share.

A latent is a level and a shape. Level 0 is silence, and silence is exactly zero; 1 is full scale, and between
them lie RANGE_DB decibels. The shape, in (-1, 1), is what the network makes of the frame at unit loudness:
a distant shot is as easy to code as a near one.

The head says whether a tick sounds at all, and paints its latent by a few steps of a flow from noise, given
what the trunk says of the tick, the latent that the picture is decoded from, the action and the sound before.

Axes: B batch, T ticks, F frames (B * T), C two channels, S samples, L latent. Everything in float32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from world_model.config import AudioConfig

CHANNELS = 2
FULL_SCALE = 32768.0
RANGE_DB = 72.0
PATCH = 16
"""Samples to one column of the outermost grid; two steps of 3 lead to the inmost (config.AUDIO_CELL)."""
POOLED = 32
GLANCE = (2, 4)
"""Rows and columns into which the picture is pooled for the head: enough to hear where something is."""
DOUBT = (0.25, 0.75)
"""Ticks less likely than this to sound are silent, more likely ones sound, between them chance decides: a
coin thrown 25 times a second for what is almost certain would crackle."""


class SoundState(NamedTuple):
    """What a dream carries: latent (B, L) of the present tick, the overlap tail (B, C, overlap) that the
    next tick begins over, and samples int16 (B, S, C), the sound of the present tick itself."""

    latent: Tensor
    tail: Tensor
    samples: Tensor


class _Block(nn.Module):
    """Residual convolutions; starts as the identity."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(channels, channels, kernel, padding=kernel // 2)
        self.conv2 = nn.Conv1d(channels, channels, kernel, padding=kernel // 2)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv2(F.silu(self.conv1(F.silu(x))))
        return out


class Codec(nn.Module):
    """Frames (F, C, frame) in [-1, 1] <-> latents (F, L)."""

    def __init__(self, config: AudioConfig) -> None:
        super().__init__()
        self.config = config
        c, cells = config.dim, config.frame // (9 * PATCH)
        self.encoder = nn.Sequential(
            nn.Conv1d(CHANNELS, c, 2 * PATCH, PATCH, PATCH // 2),
            _Block(c, 5),
            nn.Conv1d(c, 2 * c, 3, 3),
            _Block(2 * c, 3),
            nn.Conv1d(2 * c, 2 * c, 3, 3),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(2 * c * cells, config.latent_dim - 1),
            nn.Tanh(),
        )
        self.decoder = nn.Sequential(
            nn.Linear(config.latent_dim - 1, 2 * c * cells),
            nn.Unflatten(1, (2 * c, cells)),
            nn.SiLU(),
            nn.ConvTranspose1d(2 * c, 2 * c, 3, 3),
            _Block(2 * c, 3),
            nn.ConvTranspose1d(2 * c, c, 3, 3),
            _Block(c, 5),
            nn.SiLU(),
            nn.ConvTranspose1d(c, CHANNELS, 2 * PATCH, PATCH, PATCH // 2),
        )

    def encode(self, frames_FCS: Tensor) -> Tensor:
        """Latents (F, L): the level in [0, 1], and behind it the shape in (-1, 1), zero in silence."""
        level = to_level(frames_FCS.square().mean((1, 2)).sqrt())
        shape = self.encoder(_turned(frames_FCS / to_gain(level).clamp(min=1e-6)[:, None, None]))
        return torch.cat((level[:, None], shape * (level > 0)[:, None]), 1)

    def shape(self, latent_FL: Tensor) -> Tensor:
        """What is decoded at unit loudness, (F, C, frame), before the window."""
        return _turned(self.decoder(latent_FL[:, 1:])) * 2

    def decode(self, latent_FL: Tensor) -> Tensor:
        """Frames (F, C, frame), before the window; exactly zero where the level is."""
        return self.shape(latent_FL) * to_gain(latent_FL[:, 0])[:, None, None]

    def join(self, frames_BTCS: Tensor, tail_BCS: Tensor) -> tuple[Tensor, Tensor]:
        """Windowed and added to what the tick before left: sound (B, C, T * samples) and the new tail."""
        # Not a buffer: a model that is built without memory, to be given its weights, would lack it.
        windowed = frames_BTCS * _window(self.config.samples, self.config.overlap, tail_BCS.device)
        body, tails = windowed.split((self.config.samples, self.config.overlap), -1)
        before = torch.cat((tail_BCS[:, None], tails[:, :-1]), 1)
        body = body + F.pad(before, (0, self.config.samples - self.config.overlap))
        return body.transpose(1, 2).flatten(2), tails[:, -1]

    def frames(self, sound_BTSC: Tensor, before_BSC: Tensor) -> Tensor:
        """The frames (B, T, C, frame) of ticks int16 (B, T, S, C) after `before` (B, overlap, C)."""
        line = torch.cat((before_BSC, sound_BTSC.flatten(1, 2)), 1).transpose(1, 2) / FULL_SCALE
        return line.unfold(2, self.config.frame, self.config.samples).transpose(1, 2)


class Feeling(NamedTuple):
    """What the head makes of a tick: a condition (F, D) for painting, and the logit (F,) that it sounds."""

    condition: Tensor
    logit: Tensor


class AudioHead(nn.Module):
    """(trunk's features, picture's latent, action, latent of the sound before) -> latent of the sound."""

    def __init__(self, config: AudioConfig, features: int, latent_dim: int, actions: int) -> None:
        super().__init__()
        self.config = config
        d, sound = config.head_dim, config.latent_dim
        self.glance = nn.Conv2d(features + latent_dim, POOLED, 1)
        self.embed_glance = nn.Linear(POOLED * GLANCE[0] * GLANCE[1], d)
        self.embed_action = nn.Embedding(actions, d)
        self.embed_before = nn.Sequential(nn.Linear(sound, d), nn.SiLU(), nn.Linear(d, d))
        self.mix = nn.Sequential(nn.SiLU(), nn.Linear(d, d), nn.SiLU())
        self.sounds = nn.Linear(d, 1)
        self.paint = nn.Sequential(
            nn.Linear(d + sound + 8, d), nn.SiLU(), nn.Linear(d, d), nn.SiLU(), nn.Linear(d, sound)
        )

    def look(self, features_FDhw: Tensor, z_FChw: Tensor) -> Tensor:
        """What is seen and going on in a tick, pooled: (F, D). Needs nothing of the tick before."""
        x = F.silu(self.glance(torch.cat((features_FDhw.float(), z_FChw.float()), 1)))
        out: Tensor = self.embed_glance(F.adaptive_avg_pool2d(x, GLANCE).flatten(1))
        return out

    def feel(self, seen_FD: Tensor, act_F: Tensor, before_FL: Tensor) -> Feeling:
        """`before` is the latent of the tick before."""
        c = self.mix(seen_FD + self.embed_action(act_F) + self.embed_before(before_FL))
        return Feeling(c, self.sounds(c)[:, 0])

    def clean(self, noised_FL: Tensor, tau_F: Tensor, condition_FD: Tensor) -> Tensor:
        """The clean latent from tau * clean + (1 - tau) * noise."""
        angles = tau_F[:, None] * torch.pi * 2.0 ** torch.arange(4, device=tau_F.device)
        out: Tensor = self.paint(torch.cat((condition_FD, noised_FL, angles.sin(), angles.cos()), 1))
        return out

    def sample(self, feeling: Feeling, noise_FL: Tensor, chance_F: Tensor) -> Tensor:
        """A latent (F, L) from unit noise and a chance in [0, 1); what is not finite is silence."""
        x, steps = noise_FL, self.config.head_steps
        for k in range(steps):
            clean = self.clean(x, x.new_full((len(x),), k / steps), feeling.condition)
            x = x + (clean - x) / (steps - k)
        low, high = DOUBT
        sounds = torch.sigmoid(feeling.logit) > low + (high - low) * chance_F
        x = torch.cat((x[:, :1].clamp(0, 1), x[:, 1:].clamp(-1, 1)), 1)
        heard = sounds & (x[:, 0] > 0) & torch.isfinite(x).all(1)
        return torch.where(heard[:, None], x, torch.zeros_like(x))


class AudioModel(nn.Module):
    """Codec and head of one world."""

    def __init__(self, config: AudioConfig, features: int, latent_dim: int, actions: int) -> None:
        super().__init__()
        self.config = config
        self.codec = Codec(config)
        self.head = AudioHead(config, features, latent_dim, actions)

    def silence(self, batch: int, device: torch.device | str = "cpu") -> SoundState:
        """How a dream begins: what sounded before is not known."""
        c = self.config
        return SoundState(
            torch.zeros(batch, c.latent_dim, device=device),
            torch.zeros(batch, CHANNELS, c.overlap, device=device),
            torch.zeros(batch, c.samples, CHANNELS, dtype=torch.int16, device=device),
        )

    def step(
        self, before: SoundState, features: Tensor, z: Tensor, act: Tensor, generator: torch.Generator
    ) -> SoundState:
        """The sound of a tick: `features` of the trunk and `z` (B, C, h, w), the picture it leads to.

        `generator` is on the CPU; the same one gives the same sound.
        """
        noise = torch.randn(before.latent.shape, generator=generator).to(z.device)
        chance = torch.rand(len(z), generator=generator).to(z.device)
        feeling = self.head.feel(self.head.look(features, z), act, before.latent)
        return self.play(before, self.head.sample(feeling, noise, chance))

    def play(self, before: SoundState, latent_BL: Tensor) -> SoundState:
        """Decodes one tick after another."""
        frames = self.codec.decode(latent_BL)[:, None]
        sound, tail = self.codec.join(frames, before.tail)
        return SoundState(latent_BL, tail, to_int16(sound.transpose(1, 2)))


def to_level(rms: Tensor) -> Tensor:
    """Loudness as a share of the range: 0 below -RANGE_DB, 1 at full scale."""
    return (1 + 20 * rms.clamp(min=1e-9).log10() / RANGE_DB).clamp(0, 1)


def to_gain(level: Tensor) -> Tensor:
    """The inverse of `to_level`; 0 for level 0."""
    return 10 ** ((level - 1) * (RANGE_DB / 20)) * (level > 0)


def to_int16(sound: Tensor) -> Tensor:
    """[-1, 1] -> int16."""
    return (sound * FULL_SCALE).round().clamp(-FULL_SCALE, FULL_SCALE - 1).to(torch.int16)


def _turned(x_FCS: Tensor) -> Tensor:
    """Left and right -> middle and side; twice that of them is left and right again."""
    left, right = x_FCS.unbind(1)
    return torch.stack(((left + right) / 2, (left - right) / 2), 1)


def _window(samples: int, overlap: int, device: torch.device) -> Tensor:
    """(samples + overlap,): rises and falls so that neighbours add up to one."""
    rise = torch.sin(torch.pi / 2 * (torch.arange(overlap, device=device) + 0.5) / overlap).square()
    return torch.cat((rise, torch.ones(samples - overlap, device=device), rise.flip(0)))
