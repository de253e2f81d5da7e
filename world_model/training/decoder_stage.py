"""Stage `decoder`: the last step, tuning the decoder on what the dynamics really hand it.

The encoder and the dynamics stay as they are. The decoder sees latents that the head painted beside clean
ones, and is held to the texture of real frames: the energy of second differences, block by block. Without
that term the mean of all possible grains is no grain, and walls turn to plastic.

In a world with a cast what is decoded with the map's detail are latents of a dream that went on by itself for
a while. Shown those of real frames, the decoder would learn that they show things, and let them shine through
those of the cast.

In a world that carries, what paints from the latent alone stays as it is too, for the dynamics look at its
pictures again: only how the map's detail is painted is learned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from world_model.config import view_rows
from world_model.data.dataset import Clips, LatentDataset
from world_model.data.dataset import lively as lively_in
from world_model.data.tracks import Track
from world_model.dynamics import Retrieved, Step
from world_model.map import Detail
from world_model.model import WorldModel
from world_model.precision import mixed_precision
from world_model.tokenizer import laplacian, reconstruction_loss, to_float
from world_model.training.cast_stage import all_tracks, real_things
from world_model.training.dynamics_stage import own_steps, own_views, paint
from world_model.training.preview import RolloutPreview
from world_model.training.tokenizer_stage import (
    LATENT_NOISE,
    LIVELY_WEIGHT,
    TokenizerPreview,
    lively_loss,
)

DECODED = 4
"""Clips to a batch."""
AGAIN = 3
"""Steps on other parts of the same pictures, after the first: dreaming them costs most of it."""
ALONE, LONG = 12, 24
"""Ticks that a dream of a world with a cast goes on by itself before it is decoded, and at the longest."""
TEXTURE_WEIGHT = 0.7
"""Of pictures that are decoded with the map's detail, or from latents that the head painted."""
PATTERN_WEIGHT = 5.0
POSE_ERROR = 0.0005
"""Standard deviation of the pose, in half extents. The detail is held to where the picture was taken: a dream
that stands a little elsewhere must show that place sharply, not the blur of both."""
TEXTURE_BLOCK = 8
TEXTURE_SIZES = (1, 2, 4)
"""How much smaller the pictures are whose energy counts: a near wall shows its texels many pixels wide."""
TEXTURE_FLOOR = 1e-4
"""Energy, of pictures in [-1, 1], below which a block counts as smooth."""


@dataclass(frozen=True)
class DecoderBatch:
    """Clips, the ticks (B, N) that are decoded, the real frames uint8 (B * N, H, W, 3) at them, where in
    these it is `lively` (B * N, H, W), and what of a cast is seen in them (B * N, 4, H, W)."""

    clips: Clips
    ticks: Tensor
    frames: NDArray[np.uint8]
    lively: NDArray[np.bool_]
    things: Tensor | None = None


def drawing(world: WorldModel) -> nn.ModuleDict:
    """What this stage trains: the decoder and, with a map, how its fine paint is read."""
    decoder = world.tokenizer.decoder
    parts: dict[str, nn.Module] = {"decoder": decoder}
    if world.dynamics.carry is not None:
        assert decoder.detail is not None, "a world that carries has a map"
        parts = {"detail": decoder.detail}
    if world.dynamics.place is not None:
        map_ = world.dynamics.place.map
        parts |= {"gaze": map_.gaze, "paint": map_.surfaces.fine}
    if world.dynamics.recollection is not None:
        parts["gaze"] = world.dynamics.recollection.gaze
    return nn.ModuleDict(parts)


class DecoderStage:
    """Each picture is decoded three times: from its latent under noise alone, from that with the detail of
    the map, and from what the head painted with the detail of the map."""

    name = "decoder"

    def __init__(
        self,
        world: WorldModel,
        data: LatentDataset,
        preview: RolloutPreview,
        still: TokenizerPreview,
        device: str,
        batch_size: int = DECODED,
        clip_ticks: int = 8,
        per_clip: int = 4,
    ) -> None:
        self.device = torch.device(device)
        self._world, self._data, self._preview, self._still = world, data, preview, still
        self._batch_size, self._clip_ticks, self._per_clip = batch_size, clip_ticks, per_clip
        world.requires_grad_(False)
        self.model: nn.Module = drawing(world).requires_grad_(True)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._again = 0
        self._batch: DecoderBatch | None = None
        self._painted: Tensor | None = None
        config, self._tracks = world.config.cast, list[Track]()
        if config is not None:
            self._tracks = all_tracks(data, config, world.camera)
            self._clip_ticks = LONG

    def batch(self, rng: np.random.Generator, done: float) -> DecoderBatch:
        picks = rng.choice(len(self._data.episodes), self._batch_size)
        last = [len(self._data.episodes[i]) - self._clip_ticks for i in picks]
        places = [(int(i), int(rng.integers(0, n + 1))) for i, n in zip(picks, last, strict=True)]
        keyframes = self._world.config.dynamics.retrieved
        clips = self._data.clips(places, self._clip_ticks, keyframes, rng)
        first = ALONE if self._tracks else 4
        ticks = rng.integers(first, self._clip_ticks, (self._batch_size, self._per_clip))
        at = [(i, int(start + 1 + t)) for (i, start), row in zip(places, ticks, strict=True) for t in row]
        shown = [(self._data.episodes[i], t) for i, t in at]
        view = view_rows(self._world.config)
        return DecoderBatch(
            clips,
            torch.from_numpy(ticks),
            np.stack([e.frames[t] for e, t in shown]),
            np.stack([lively_in(e, t, view) for e, t in shown]),
            self._overlay(at) if self._tracks else None,
        )

    def _overlay(self, at: list[tuple[int, int]]) -> Tensor:
        """What is seen of the things that really are there, at (episode, tick)."""
        seen = []
        for i, t in at:
            things, pose = real_things(self._world, self._data, i, t, self._tracks[i])
            overlay = self._world.overlay(things, pose)
            assert overlay is not None
            seen.append(overlay)
        return torch.cat(seen)

    def loss(self, batch: DecoderBatch, done: float) -> tuple[Tensor, dict[str, float]]:
        if not self._again:
            self._batch, self._painted = batch, None
        self._again = (self._again or AGAIN + 1) - 1
        assert self._batch is not None
        batch = self._batch
        clips = batch.clips.to(self.device)
        rows = torch.arange(len(batch.ticks), device=self.device)[:, None]
        ticks = batch.ticks.to(self.device)
        clean = clips.z[:, 1:][rows, ticks].flatten(0, 1)
        x = to_float(batch.frames, self.device)
        with mixed_precision(self.device.type):
            if self._painted is None:
                dreamed = self._dream(clips) if self._tracks else self._paint(clips)
                self._painted = dreamed[rows, ticks].flatten(0, 1)
            painted = self._painted
            level = torch.rand(len(clean), 1, 1, 1, device=self.device) * LATENT_NOISE
            noised = clean + level * torch.randn_like(clean)
            detail, shown = self._detail(clips, rows, ticks), noised
            if detail is not None and batch.things is not None:
                overlay = batch.things.to(self.device)
                detail = detail._replace(things=torch.cat((overlay, overlay)))
                shown = painted
            cut = cutting(self._world.config.tokenizer.grid)
            x, noised, painted, shown = cut(x), cut(noised), cut(painted), cut(shown)
            detail = None if detail is None else detail.each(cut)
            decode = self._world.tokenizer.decode
            alone = None if self._world.dynamics.carry is not None else decode(_last(noised))
            out = decode(_last(torch.cat((shown, painted))), detail)
        target = torch.cat((x, x))
        lively = cut(torch.from_numpy(batch.lively)).numpy()
        texture = texture_loss(out, target)
        loss = reconstruction_loss(out, target) + TEXTURE_WEIGHT * texture
        loss = loss + PATTERN_WEIGHT * pattern_loss(out, target)
        if alone is not None:
            loss = loss + 0.5 * reconstruction_loss(alone, x)
        loss = loss + LIVELY_WEIGHT * lively_loss(out, target, np.concatenate((lively, lively)))
        energy = laplacian(out).square().mean() / laplacian(target).square().mean()
        miss = (out - target).square().mean((1, 2, 3)).chunk(2)
        metrics = {"still": miss[0].mean().item(), "dreamed": miss[1].mean().item()}
        return loss, metrics | {"texture": texture.item(), "energy": energy.item()}

    def preview(self, path: Path) -> dict[str, float]:
        still = self._still(self._world.tokenizer, path.with_name(path.stem + "-still.png"))
        return still | self._preview(self._world, path)

    def _detail(self, clips: Clips, rows: Tensor, ticks: Tensor) -> Detail | None:
        """The map's detail at each decoded picture, twice over; None without a map."""
        place, recollection = self._world.dynamics.place, self._world.dynamics.recollection
        if clips.pose is None or (place is None and recollection is None):
            return None
        pose = clips.pose[:, 1:][rows, ticks].flatten(0, 1)
        unit = torch.tensor([1.0, 1.0, 2.0], device=pose.device)
        pose = pose + POSE_ERROR * unit * torch.randn_like(pose)
        if place is not None:
            detail = place.map.detail(pose)
        else:
            views = own_views(self._world.dynamics, clips.held)
            assert recollection is not None and views is not None
            detail = recollection.detail(views._replace(held=views.held[rows, ticks]), pose)
        return detail.each(lambda part: torch.cat((part, part)))

    @torch.no_grad()
    def _dream(self, clips: Clips) -> Tensor:
        """The head's latents (B, T, C, h, w), tick by tick from the fourth on."""
        world, dynamics = self._world, self._world.dynamics
        assert clips.past_pose is not None, "a cast needs a map"
        retrieved = Retrieved(clips.past, clips.past_age, clips.past_pose)
        step, state = own_steps(dynamics, clips), dynamics.trunk.init_state(len(clips.act), self.device)
        z, painted = clips.z[:, 0], []
        for t in range(clips.act.shape[1]):
            now = Step(*(s[:, t] for s in step))
            out, state = dynamics.trunk.step(z, clips.act[:, t], clips.phase[:, t], now, retrieved, state)
            fed = world.paint(torch.randn_like(z), out, z, now.motion, world.config.head_steps)
            painted.append(fed)
            z = clips.z[:, t + 1] if t < 4 else fed
        return torch.stack(painted, 1)

    @torch.no_grad()
    def _paint(self, clips: Clips) -> Tensor:
        """The head's latents (B, T, C, h, w) after two passes of feeding itself.

        Half of the batches start from the map's own pictures instead of real latents: that is how smooth
        a dream has become after some seconds.
        """
        dynamics = self._world.dynamics
        pose = clips.past_pose if dynamics.place is not None else None
        pose = torch.zeros(*clips.past_age.shape, 3, device=self.device) if pose is None else pose
        retrieved = Retrieved(clips.past, clips.past_age, pose)
        z, step = clips.z[:, :-1], own_steps(dynamics, clips)
        sampled, real = z, 4
        if dynamics.place is not None and bool(torch.rand(()) < 0.5):
            z, real = torch.cat((z[:, :1], step.seen[:, :-1, : z.shape[2]]), 1), 1
        for _ in range(2):
            out = self._world.think(z, clips.act, clips.phase, step, retrieved)
            sampled = paint(dynamics.head, out, self._world.config.head_steps)
            z = torch.cat((z[:, :real], sampled[:, real - 1 : -1]), 1)
        return sampled


def cutting(grid: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    """Cuts the same part of half the width and height, at random, out of latents, details and pictures: four
    times the variety for the same work."""
    size = [max(1, side // 2) for side in grid]
    top, left = (int(torch.randint(0, side - s + 1, ())) for side, s in zip(grid, size, strict=True))

    def cut(whole: Tensor) -> Tensor:
        cell = whole.shape[-1] // grid[1]
        return whole[
            ..., top * cell : (top + size[0]) * cell, left * cell : (left + size[1]) * cell
        ].contiguous()

    return cut


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def texture_loss(out_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """Difference of the log energy of second differences along x and along y, in 8 x 8 blocks, at full
    size and smaller ones: too smooth costs as much as too rough, and streaks must run the right way.
    Brightness and colour count apart: grain is grey, and a coloured one would be the cheaper way to the
    same energy."""
    out, target = _opponent(out_BCHW), _opponent(target_BCHW)
    pairs = zip(_energies(out), _energies(target), strict=True)
    return torch.stack([(a - b).abs().mean() for a, b in pairs]).mean()


def pattern_loss(out_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """Difference in what stripes and checks of two pixels weigh in each 8 x 8 block, phase and all.

    Grain has no phase; a pattern of the upsampling has, and would feed `texture_loss` everywhere alike.
    """
    miss = out_BCHW - target_BCHW
    odd_x = 1 - 2 * (torch.arange(miss.shape[-1], device=miss.device) % 2)
    odd_y = 1 - 2 * (torch.arange(miss.shape[-2], device=miss.device) % 2)[:, None]
    waves = [F.avg_pool2d(miss * wave, TEXTURE_BLOCK).abs().mean() for wave in (odd_x, odd_y, odd_x * odd_y)]
    return torch.stack(waves).mean()


def _opponent(x_BCHW: Tensor) -> Tensor:
    """Brightness, red against green, blue against both."""
    red, green, blue = x_BCHW.unbind(1)
    return torch.stack(((red + green + blue) / 3, (red - green) / 2, blue / 2 - (red + green) / 4), 1)


def _energies(x_BCHW: Tensor) -> list[Tensor]:
    energies = []
    side = min(x_BCHW.shape[2:])
    sizes = [size for size in TEXTURE_SIZES if side // size >= TEXTURE_BLOCK + 2]
    for x in (F.avg_pool2d(x_BCHW, size) for size in sizes):
        along_x = 2 * x[..., 1:-1] - x[..., :-2] - x[..., 2:]
        along_y = 2 * x[..., 1:-1, :] - x[..., :-2, :] - x[..., 2:, :]
        for bend in (along_x, along_y):
            energies.append((F.avg_pool2d(bend.square(), TEXTURE_BLOCK) + TEXTURE_FLOOR).log())
    return energies
