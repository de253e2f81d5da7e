"""Stage `gauges`: how numbers of a status bar are written, and how they change.

Glyphs are the means of what stood in the picture where the source tells which number it was. Changes are a
choice among those that were ever counted. What an action amounts to without ammunition, and that nothing
comes after the last of health, is counted as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from world_model.config import CastConfig
from world_model.data.dataset import LatentDataset
from world_model.data.episodes import Episode
from world_model.data.tracks import Track
from world_model.gauges import BLANK, CHANGES, DIGITS, LARGEST, Gauges, Readings, digits, gauge_loss
from world_model.model import WorldModel
from world_model.place import motion_between
from world_model.things import Things
from world_model.tokenizer import to_float, to_uint8
from world_model.training.cast_stage import all_tracks
from world_model.training.pictures import save_rows

Whole = NDArray[np.int64]

CLIPS, WINDOW, WARM = 32, 96, 8
"""Clips and ticks of a batch, and ticks at the start of each in which nothing is asked."""
WRITTEN = 6
"""Every so many frames count for glyphs."""
OFTEN = 10
"""Ticks in which an action has to be seen with a gauge at nothing, for what it amounts to then."""
UNCHANGED = 0.5
"""By so much nearer, in spreads over all actions, another has to be: what is done then differs by itself."""


class Counted(NamedTuple):
    """Clips: value (B, T + 1, G), change (B, T, G), kind (B, T + 1, N), at (B, T + 1, N, 3), pose (B, T + 1,
    3), act and phase (B, T)."""

    value: Tensor
    change: Tensor
    kind: Tensor
    at: Tensor
    pose: Tensor
    act: Tensor
    phase: Tensor


class GaugesStage:
    """Trains the numbers of a status bar."""

    name = "gauges"

    def __init__(self, world: WorldModel, data: LatentDataset, held_out: LatentDataset, device: str) -> None:
        self.device = torch.device(device)
        world.requires_grad_(False)
        assert world.gauges is not None and world.config.cast is not None
        self._world, self._config = world, world.config.cast
        self._gauges: Gauges = world.gauges
        self.model: nn.Module = self._gauges.requires_grad_(True)
        self._held_out = held_out
        values = [numbers(e, self._config) for e in data.episodes]
        if not bool(self._gauges.glyphs.any()):
            self._gauges.glyphs.copy_(glyphs(self._gauges, data.episodes, values, self._config.late))
            self._gauges.steps.copy_(_changes(values))
        poses = [data.pose(i) for i in range(len(data.episodes))]
        self._gauges.meaning.copy_(meanings(data.episodes, values, poses, len(world.config.actions)))
        self._gauges.ends.copy_(endings(data.episodes, values))
        self._counted = self._count(data)

    def _count(self, data: LatentDataset) -> list[Counted]:
        made = []
        steps = self._gauges.steps.view(-1, CHANGES).cpu().numpy()
        tracks: list[Track] = all_tracks(data, self._config, self._world.camera)
        for episode, own in zip(data.episodes, tracks, strict=True):
            value = numbers(episode, self._config)
            moved = np.diff(value, axis=0)
            change = np.abs(moved[:, :, None] - steps[None]).argmin(-1)
            act, phase = (np.asarray(x, np.int64) for x in (episode.actions, episode.phases))
            parts = (value, change, own.kind, own.at, own.pose, act, phase)
            made.append(Counted(*(torch.from_numpy(np.ascontiguousarray(x)) for x in parts)))
        return made

    def batch(self, rng: np.random.Generator, done: float) -> Counted:
        return _clips(self._counted, rng, CLIPS)

    def loss(self, batch: Counted, done: float) -> tuple[Tensor, dict[str, float]]:
        loss = self._told(Counted(*(x.to(self.device) for x in batch)))
        return loss, {"nats": loss.item()}

    def _told(self, clip: Counted) -> Tensor:
        hidden = torch.zeros(len(clip.value), self._gauges.dim, device=self.device)
        told = []
        for t in range(clip.act.shape[1]):
            blank = torch.zeros_like(clip.kind[:, t])
            things = Things(clip.kind[:, t], blank + 1, blank, clip.at[:, t], clip.at[:, t])
            readings = Readings(clip.value[:, t], clip.value[:, t], hidden)
            odds, hidden = self._gauges(readings, things, clip.pose[:, t], clip.act[:, t], clip.phase[:, t])
            if t >= WARM:
                told.append(gauge_loss(odds, clip.change[:, t]))
        return torch.stack(told).mean()

    @torch.no_grad()
    def preview(self, path: Path) -> dict[str, float]:
        """The glyphs; nats of held-out changes; which part of held-out numbers is read right."""
        rows = [
            list(to_uint8(self._glyph(g, k) * 2 - 1))
            for g in range(len(self._gauges.boxes))
            for k in range(3)
        ]
        save_rows(path, rows)
        clip = _clips(self._count(self._held_out), np.random.default_rng(0), 64)
        right = total = 0
        for episode in self._held_out.episodes:
            ticks = np.arange(1, len(episode.frames), 40)
            x = to_float(np.array(episode.frames[ticks]), self.device)
            shown = numbers(episode, self._config)[ticks - self._config.late]
            right += int((self._gauges.read(x).cpu().numpy() == shown).sum())
            total += shown.size
        nats = self._told(Counted(*(x.to(self.device) for x in clip)))
        return {"nats": float(nats), "read": right / max(1, total)}

    def _glyph(self, gauge: int, place: int) -> Tensor:
        _, _, width, height = self._gauges.boxes[gauge]
        return self._gauges.glyphs[gauge, place].unflatten(1, (3, height, width // DIGITS))


def numbers(episode: Episode, config: CastConfig) -> Whole:
    """The numbers (T + 1, G) of an episode."""
    assert episode.variables is not None, "this source tells no numbers"
    names = list(episode.header["variables"])
    told = np.asarray(episode.variables, np.int64)[:, [names.index(n) for n in config.gauges]]
    return told.clip(0, LARGEST)


def glyphs(gauges: Gauges, episodes: list[Episode], values: list[Whole], late: int) -> Tensor:
    """The mean picture of each digit at each place; one that never stood there is that of all places."""
    total = torch.zeros_like(gauges.glyphs, device="cpu")
    count = torch.zeros(*gauges.glyphs.shape[:3], 1)
    for episode, value in zip(episodes, values, strict=True):
        ticks = np.arange(late, len(episode.frames), WRITTEN)
        x = to_float(np.array(episode.frames[ticks]))
        shown = torch.from_numpy(value[ticks - late])
        for g in range(len(gauges.boxes)):
            seen, written = gauges.cut(x, g), digits(shown[:, g])
            for k in range(DIGITS):
                total[g, k].index_add_(0, written[:, k], seen[:, k])
                count[g, k, :, 0] += torch.bincount(written[:, k], minlength=BLANK + 1)
    mean = total / count.clamp(min=1)
    every = total.sum(1, keepdim=True) / count.sum(1, keepdim=True).clamp(min=1)
    return torch.where(count > 0, mean, every)


def _changes(values: list[Whole]) -> Tensor:
    """The commonest changes of each gauge, none among them: (G * CHANGES,)."""
    rows = []
    for g in range(values[0].shape[1]):
        moved = np.concatenate([np.diff(v[:, g]) for v in values])
        steps, count = np.unique(moved, return_counts=True)
        best = steps[np.argsort(-count)][:CHANGES].astype(np.float32)
        rows.append(np.pad(best, (0, CHANGES - len(best)), constant_values=best[0]))
    return torch.from_numpy(np.concatenate(rows))


def meanings(
    episodes: list[Episode], values: list[Whole], poses: Sequence[NDArray[Any] | None], actions: int
) -> Tensor:
    """What each action amounts to while a gauge stands at nothing: the one that otherwise moves the player,
    and takes from the gauge, as it does then. (G, A); what is hardly ever seen stays what it is."""
    act = np.concatenate([np.asarray(e.actions, np.int64) for e in episodes])
    value = np.concatenate([v[:-1] for v in values])
    spent = np.concatenate([np.diff(v, axis=0).clip(max=0) for v in values])
    moved = np.concatenate([_motions(p, len(v)) for p, v in zip(poses, values, strict=True)])
    found = np.tile(np.arange(actions), (value.shape[1], 1))
    for g in range(value.shape[1]):
        effect, none = np.concatenate((moved, spent[:, g : g + 1]), 1), value[:, g] == 0
        each = [[(act == a) & when for a in range(actions)] for when in (~none, none)]
        usual, then = (
            {a: effect[m].mean(0) for a, m in enumerate(masks) if m.sum() >= OFTEN} for masks in each
        )
        spread = np.std(np.array(list(usual.values())), axis=0) + 1e-6 if usual else 1.0
        for a in set(then) & set(usual):
            away = {b: float(np.linalg.norm((then[a] - usual[b]) / spread)) for b in usual}
            away[a] -= UNCHANGED
            found[g, a] = min(away, key=lambda b: away[b])
    return torch.from_numpy(found).float()


def _motions(pose: NDArray[Any] | None, frames: int) -> NDArray[np.float64]:
    """How the player moved in each tick (T, 3), seen from the player."""
    at = torch.zeros(frames, 3) if pose is None else torch.as_tensor(pose).double()
    return motion_between(at[:-1], at[1:]).numpy()


def endings(episodes: list[Episode], values: list[Whole]) -> Tensor:
    """The gauges (G,) that stand at nothing whenever the game itself came to its end, and never before."""
    ends = [v[-1] == 0 for e, v in zip(episodes, values, strict=True) if e.header.get("terminated")]
    before = np.any([(v[:-1] == 0).any(0) for v in values], axis=0)
    always = np.all(ends, axis=0) if ends else np.zeros(values[0].shape[1], bool)
    return torch.from_numpy(always & ~before).float()


def _clips(counted: list[Counted], rng: np.random.Generator, count: int) -> Counted:
    lengths = np.array([len(c.act) for c in counted])
    ticks = min(WINDOW, int(lengths.min()))
    clips = []
    for i in rng.choice(len(counted), count, p=lengths / lengths.sum()):
        start = int(rng.integers(0, lengths[i] - ticks + 1))
        own = counted[int(i)]._asdict()
        short = ("change", "act", "phase")
        clips.append([x[start : start + ticks + (name not in short)] for name, x in own.items()])
    return Counted(*(torch.stack(x) for x in zip(*clips, strict=True)))
