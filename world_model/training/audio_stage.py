"""Stages `codec` and `audio`: sound to latents and back, then imagining the next latent of a dream.

Silence is most of what there is, so clips are chosen by what happens in them (sound_clips.py).
The head learns on the frozen trunk and the frozen codec, tick by tick with carried latents as in play, part
of them its own, beside pictures of which part are the dream's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from world_model.audio import CHANNELS, Codec, Feeling
from world_model.data.dataset import Clips, LatentDataset
from world_model.data.episodes import Episode
from world_model.dynamics import Retrieved
from world_model.model import WorldModel
from world_model.precision import mixed_precision
from world_model.spectrum import log_mel_distance, snr, spectral_loss, spectrogram
from world_model.training.dynamics_stage import own_steps, paint
from world_model.training.pictures import write_png
from world_model.training.sound_clips import HEARD, ONSET_WEIGHT, SoundBatch, SoundSampler, onsets

LATENT_NOISE = 0.03
"""On what is decoded, so that the head need not be exact."""
OWN = 0.5
"""Share of the head's clips in which it hears what it said itself."""


def hearing(world: WorldModel) -> dict[str, nn.Module | None]:
    """What these stages train, by the name of the stage; None in a world without sound."""
    audio = world.audio
    return {"codec": audio and audio.codec, "audio": audio and audio.head}


class CodecStage:
    """Waveform and spectra of what comes out against what went in; loud ticks and onsets count most."""

    name = "codec"

    def __init__(
        self,
        codec: Codec,
        train: list[Episode],
        val: list[Episode],
        device: str,
        batch_size: int = 16,
        ticks: int = 8,
    ) -> None:
        self.device = torch.device(device)
        self.codec: Codec = codec.to(self.device).requires_grad_(True)
        self.model: nn.Module = self.codec
        self._sampler, self._batch_size, self._ticks = SoundSampler(train, codec.config), batch_size, ticks
        self._held_out = SoundSampler(val, codec.config)

    def batch(self, rng: np.random.Generator, done: float) -> SoundBatch:
        places = self._sampler.places(rng, self._batch_size, self._ticks)
        return self._sampler.cut(places, self._ticks)

    def loss(self, batch: SoundBatch, done: float) -> tuple[Tensor, dict[str, float]]:
        batch = batch.to(self.device)
        codec = self.codec
        frames = codec.frames(batch.sound, batch.before)
        flat = frames.flatten(0, 1)
        latent = codec.encode(flat)
        noised = latent[:, 1:] + LATENT_NOISE * torch.randn_like(latent[:, 1:])
        latent = torch.cat((latent[:, :1], noised), 1)
        out = codec.decode(latent)
        # At unit loudness, weighted by loudness: otherwise either only the loudest or all the hiss counts.
        weight = latent[:, 0] * (1 + (ONSET_WEIGHT - 1) * batch.onset.flatten())
        unit = flat.square().mean((1, 2)).sqrt().clamp(min=1e-6)[:, None, None]
        wave = ((out - flat) / unit).abs().mean((1, 2))
        wave = (wave * weight).sum() / weight.sum().clamp(min=1e-6)
        joined, line = _joined(codec, out, frames)
        spectral = spectral_loss(joined, line)
        return wave + spectral, {"wave": wave.item(), "spectral": spectral.item()}

    @torch.no_grad()
    def preview(self, path: Path) -> dict[str, float]:
        """A strip of spectrograms, real above decoded; SNR, and log-mel distance beside that of silence."""
        places = self._held_out.places(np.random.default_rng(0), 12, 32)
        batch = self._held_out.cut(places, 32).to(self.device)
        frames = self.codec.frames(batch.sound, batch.before)
        out = self.codec.decode(self.codec.encode(frames.flatten(0, 1)))
        joined, line = _joined(self.codec, out, frames)
        return compare(path, joined.cpu(), line.cpu(), self.codec.config.rate)


AGAIN = 3
"""Steps of the audio head on what the frozen trunk has thought, after the first: the trunk costs most."""


class Heard(NamedTuple):
    """The trunk's features (B, T, F, h, w) and the latents (B, T, C, h, w) after each tick, the actions
    (B, T), the latents of the sound (B, T, L) and where it begins (B, T)."""

    features: Tensor
    after: Tensor
    act: Tensor
    target: Tensor
    onset: Tensor


class AudioStage:
    """The head on the frozen trunk: what sounds when, and which latent."""

    name = "audio"

    def __init__(
        self,
        world: WorldModel,
        data: LatentDataset,
        held_out: LatentDataset,
        device: str,
        batch_size: int = 8,
        ticks: int = 32,
    ) -> None:
        assert world.audio is not None, "the world has no sound"
        self.device = torch.device(device)
        self._world, self._audio, self._batch_size, self._ticks = world, world.audio, batch_size, ticks
        world.requires_grad_(False)
        self.model: nn.Module = world.audio.head.requires_grad_(True)
        self._data, self._sampler = data, SoundSampler(data.episodes, world.audio.config)
        self._held_out, self._preview = held_out, SoundSampler(held_out.episodes, world.audio.config)
        self._again = 0
        self._heard: Heard | None = None

    def batch(self, rng: np.random.Generator, done: float) -> tuple[Clips, SoundBatch]:
        return _clips(self._data, self._sampler, rng, self._batch_size, self._ticks, self._retrieved)

    def loss(self, batch: tuple[Clips, SoundBatch], done: float) -> tuple[Tensor, dict[str, float]]:
        if not self._again:
            clips, sound = batch[0].to(self.device), batch[1].to(self.device)
            self._heard = Heard(*self._imagined(clips), clips.act, self._latents(sound), sound.onset)
        self._again = (self._again or AGAIN + 1) - 1
        assert self._heard is not None
        features, after, act, target, onset = self._heard
        seen = self._seen(features, after)
        own = torch.rand(len(target), 1, device=self.device) < OWN
        before, logits, misses = target[:, 0], [], []
        for t in range(1, target.shape[1]):  # the first tick only says what sounded before
            feeling = self._audio.head.feel(seen[:, t], act[:, t], before)
            logits.append(feeling.logit)
            misses.append(self._miss(feeling.condition, target[:, t]))
            said = self._sample(feeling) if t + 1 < target.shape[1] else target[:, t]
            before = torch.where(own, said, target[:, t])
        target, onset = target[:, 1:], onset[:, 1:]
        heard = (target[..., 0] >= HEARD).float()
        weight = 1 + (ONSET_WEIGHT - 1) * onset
        sounds = F.binary_cross_entropy_with_logits(torch.stack(logits, 1), heard, weight)
        weight = weight * target[..., 0] * heard
        miss = (torch.stack(misses, 1) * weight).sum() / weight.sum().clamp(min=1e-6)
        return sounds + miss, {"sounds": sounds.item(), "paint": miss.item()}

    @torch.no_grad()
    def preview(self, path: Path) -> dict[str, float]:
        """Free-running sound over held-out clips with real pictures: F1 of onsets within a tick, log-mel."""
        rng = np.random.default_rng(0)
        clips, sound = _clips(self._held_out, self._preview, rng, 12, self._ticks, self._retrieved)
        clips, sound = clips.to(self.device), sound.to(self.device)
        target, seen = self._latents(sound), self._seen(*self._imagined(clips, dream=False))
        said = [torch.zeros_like(target[:, 0])]
        for t in range(target.shape[1]):
            said.append(self._sample(self._audio.head.feel(seen[:, t], clips.act[:, t], said[-1])))
        latent = torch.stack(said[1:], 1)
        frames = self._audio.codec.frames(sound.sound, sound.before)
        out = self._audio.codec.decode(latent.flatten(0, 1))
        joined, line = _joined(self._audio.codec, out, frames)
        scores = compare(path, joined.cpu(), line.cpu(), self._audio.config.rate)
        del scores["snr"]  # of a dreamed sound, which has its own phases
        real = np.stack([onsets(level) for level in target[..., 0].cpu().numpy()])
        own = np.stack([onsets(level) for level in latent[..., 0].cpu().numpy()])
        return scores | {"onset_f1": onset_f1(own, real)}

    @property
    def _retrieved(self) -> int:
        return self._world.config.dynamics.retrieved

    @torch.no_grad()
    def _latents(self, sound: SoundBatch) -> Tensor:
        frames = self._audio.codec.frames(sound.sound, sound.before)
        return self._audio.codec.encode(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])

    def _seen(self, features: Tensor, after: Tensor) -> Tensor:
        """What the head sees of each tick, (B, T, D)."""
        seen = self._audio.head.look(features.flatten(0, 1), after.flatten(0, 1))
        return seen.unflatten(0, after.shape[:2])

    def _imagined(self, clips: Clips, dream: bool = True) -> tuple[Tensor, Tensor]:
        """The trunk's features and the latents after each tick: half of the time of a dream that feeds
        itself."""
        world = self._world
        with torch.no_grad(), mixed_precision(self.device.type):
            dynamics, pose = world.dynamics, clips.past_pose
            pose = torch.zeros(*clips.past_age.shape, 3, device=self.device) if pose is None else pose
            retrieved = Retrieved(clips.past, clips.past_age, pose)
            z, after, step = clips.z[:, :-1], clips.z[:, 1:], own_steps(dynamics, clips)
            out = world.think(z, clips.act, clips.phase, step, retrieved)
            if dream and bool(torch.rand(()) < 0.5):
                after = paint(dynamics.head, out, world.config.head_steps)
                z = torch.cat((z[:, :4], after[:, 3:-1]), 1)
                out = world.think(z, clips.act, clips.phase, step, retrieved)
        return out.features, after

    def _miss(self, condition: Tensor, target: Tensor) -> Tensor:
        """(B,): x-prediction at a random point of the flow, often at pure noise. The level counts most."""
        tau = torch.rand(len(target), device=self.device) * (
            torch.rand(len(target), device=self.device) > 0.4
        )
        noised = tau[:, None] * target + (1 - tau[:, None]) * torch.randn_like(target)
        miss = (self._audio.head.clean(noised, tau, condition) - target).square()
        return miss[:, 1:].mean(1) + 4 * miss[:, 0]

    @torch.no_grad()
    def _sample(self, feeling: Feeling) -> Tensor:
        noise = torch.randn(len(feeling.logit), self._audio.config.latent_dim, device=self.device)
        return self._audio.head.sample(feeling, noise, torch.rand(len(noise), device=self.device))


def compare(path: Path, out_NS: Tensor, real_NS: Tensor, rate: int) -> dict[str, float]:
    """Writes spectrograms of up to six clips, real above `out`; SNR, log-mel distance, that of silence."""
    rows = []
    for pair in zip(real_NS[: 6 * CHANNELS : CHANNELS], out_NS[: 6 * CHANNELS : CHANNELS], strict=True):
        images = [spectrogram(sound, rate) for sound in pair]
        rows.append(np.concatenate([np.pad(i, ((0, 4), (0, 4), (0, 0)), constant_values=60) for i in images]))
    write_png(path, np.ascontiguousarray(np.concatenate(rows, 1)))
    return {
        "snr": snr(out_NS, real_NS),
        "log_mel": log_mel_distance(out_NS, real_NS, rate),
        "silence": log_mel_distance(torch.zeros_like(real_NS), real_NS, rate),
    }


def onset_f1(own_BT: NDArray[np.bool_], real_BT: NDArray[np.bool_]) -> float:
    """F1 of onsets within a tick of one another; 1 where neither has any."""

    def near(a: NDArray[np.bool_]) -> NDArray[np.bool_]:
        wide = np.pad(a, ((0, 0), (1, 1)))
        return wide[:, :-2] | wide[:, 1:-1] | wide[:, 2:]

    hits = (own_BT & near(real_BT)).sum() + (real_BT & near(own_BT)).sum()
    total = own_BT.sum() + real_BT.sum()
    return float(hits / total) if total else 1.0


def _clips(
    data: LatentDataset, sampler: SoundSampler, rng: np.random.Generator, batch: int, ticks: int, keep: int
) -> tuple[Clips, SoundBatch]:
    places = sampler.places(rng, batch, ticks)
    return data.clips(places, ticks, keep, rng), sampler.cut(places, ticks)


def _joined(codec: Codec, out_FCS: Tensor, frames_BTCS: Tensor) -> tuple[Tensor, Tensor]:
    """Decoded and real sound (B * C, samples), both as they come out: overlapped, and so much late."""
    empty = frames_BTCS.new_zeros(len(frames_BTCS), CHANNELS, codec.config.overlap)
    joined, _ = codec.join(out_FCS.unflatten(0, frames_BTCS.shape[:2]), empty)
    line, _ = codec.join(frames_BTCS, empty)
    return joined.flatten(0, 1), line.flatten(0, 1)
