"""Can a small classifier tell dreams from the real game? 50 % means that it cannot.

That says something only of a classifier that could: the same one is also asked to tell real clips from real
clips that were spoilt a little, and its answers there stand beside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from world_model.evaluation.baselines import box_blur
from world_model.evaluation.protocol import Clip, Dreamer, batched, dream
from world_model.evaluation.stats import mean_interval
from world_model.evaluation.windows import HeldOut, windows
from world_model.types import DataError, Image

CLIP_TICKS = (40, 80)
"""1.6 and 3.2 seconds."""

LOOKS = 8
"""Pairs of neighbouring frames that the classifier sees of a clip, spread evenly."""
LEARNT_LOOKS = 4
"""As many of them, drawn anew, in a step of its training."""

CROP = (64, 96)
"""Rows and columns that it sees of a pair, at full resolution and anywhere in the picture: a picture that is
made smaller first has lost what a slight blur takes."""
FINE_GAIN = 4.0
"""What a 3 x 3 mean leaves over is small beside the rest of the picture."""

STEPS, BATCH, RATE = 400, 8, 6e-3
"""Found on the controls below; the rate rises and falls again within a training."""

CAUGHT = 0.9
"""Share of clips of a control that must be told right, or the classifier is too weak to say anything."""

View = Callable[[Clip, int], Image]
"""The picture of a clip at a tick."""


def _real(clip: Clip, tick: int) -> Image:
    return clip.real(tick)


def _blurred(clip: Clip, tick: int) -> Image:
    """A box blur of 3 x 3."""
    return np.asarray(box_blur(clip.real(tick)[None], 1)[0])


def _halting(clip: Clip, tick: int) -> Image:
    """Every other picture is shown for two ticks."""
    return clip.real(tick - tick % 2)


CONTROLS: dict[str, View] = {"blurred": _blurred, "halting": _halting}
"""What is done to real clips that the classifier must tell from real ones: one for how a picture looks, one
for how it moves."""


class Judge(nn.Module):
    """Pairs of frames (N, looks, 6, h, w) in -1 to 1, a frame and its change, to one logit a clip: above zero
    means dreamed."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, o in ((7, 16), (16, 32), (32, 32)):
            layers += [nn.Conv2d(i, o, 3, stride=2, padding=1), nn.GroupNorm(4, o), nn.SiLU()]
        self.net = nn.Sequential(*layers)
        self.out = nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        pairs = x.flatten(0, 1)
        grey = pairs[:, :3].mean(1, keepdim=True)
        fine = FINE_GAIN * (grey - F.avg_pool2d(grey, 3, 1, 1))
        h = self.net(torch.cat([pairs, fine], 1)).flatten(2)
        h = torch.cat([h.mean(2), h.std(2)], 1)  # texture statistics, not places
        return self.out(h.view(len(x), -1, 64).mean(1))[:, 0]


def real_or_dream(
    dreamer: Dreamer,
    data: HeldOut,
    count: int = 48,
    steps: int = STEPS,
    seed: int = 0,
    batch: int = 16,
    lengths: Sequence[int] = CLIP_TICKS,
) -> dict[str, Any]:
    """Accuracy on held-out clips of `lengths` ticks, half of them dreamed, with checks on itself.

    Even episodes train the classifier, odd ones test it; `count` real and `count` dreamed clips on each
    side, from windows drawn apart. `check` trains the same classifier on real against real: about 0.5,
    or the method is at fault. `CONTROLS` train it on real against spoilt real: near 1, or it is too weak;
    `able` where each of them reaches `CAUGHT`. Raises DataError with fewer than two held-out episodes.
    """
    if len(data.episodes) < 2:
        raise DataError("telling real from dream needs two held-out episodes: one to learn, one to test")
    halves = [HeldOut(data.names[i::2], data.episodes[i::2]) for i in (0, 1)]
    result: dict[str, Any] = {}
    for ticks in lengths:
        sets = [[windows(h, ticks, count, False, seed=seed + k) for k in (0, 1, 2)] for h in halves]
        real = [_looks(s[0], _real) for s in sets]
        found = {"accuracy": _trial(real, [_looks_dreamed(dreamer, s[1], batch) for s in sets], steps, seed)}
        for name, view in {"check": _real, **CONTROLS}.items():
            found[name] = _trial(real, [_looks(s[2], view) for s in sets], steps, seed)
        names = [c.episode for k in (0, 1) for c in sets[1][k]]
        others = [c.episode for k in (0, 2) for c in sets[1][k]]
        shares = {
            name: mean_interval(right, names if name == "accuracy" else others)
            for name, right in found.items()
        }
        able = all(shares[name]["mean"] >= CAUGHT for name in CONTROLS)
        result[str(ticks)] = {"clips": count} | shares | {"able": able}
    return result


def _trial(real: Sequence[Tensor], other: Sequence[Tensor], steps: int, seed: int) -> NDArray[np.float64]:
    """Trains on the first halves; whether each clip of the second halves is told right."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = Judge()
    x = torch.cat([real[0], other[0]])
    y = torch.cat([torch.zeros(len(real[0])), torch.ones(len(other[0]))])
    optimiser = torch.optim.AdamW(judge.parameters(), lr=RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        pick = torch.from_numpy(rng.integers(len(x), size=BATCH))
        looks = torch.from_numpy(rng.choice(LOOKS, LEARNT_LOOKS, replace=False))
        logits = judge(_cropped(x[pick][:, looks], rng))
        loss = F.binary_cross_entropy_with_logits(logits, y[pick])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    right = [_answers(judge, clips, seed) == dreamed for clips, dreamed in ((real[1], 0), (other[1], 1))]
    return torch.cat(right).double().numpy()


@torch.no_grad()
def _answers(judge: Judge, clips: Tensor, seed: int) -> Tensor:
    """Whether each clip is taken for dreamed; the places that are looked at depend on the seed alone."""
    rng = np.random.default_rng(seed)
    return torch.cat([judge(_cropped(part, rng)) > 0 for part in clips.split(BATCH)])


def _cropped(looks: Tensor, rng: np.random.Generator) -> Tensor:
    """Pairs of frames uint8 (N, looks, 2, H, W, 3) to (N, looks, 6, h, w): a frame and its change within a
    place that is drawn for each pair."""
    height, width = (min(a, b) for a, b in zip(CROP, looks.shape[3:5], strict=True))
    rows = rng.integers(looks.shape[3] - height + 1, size=looks.shape[:2])
    columns = rng.integers(looks.shape[4] - width + 1, size=looks.shape[:2])
    pairs = torch.stack(
        [
            looks[i, j, :, top : top + height, left : left + width]
            for (i, j), top, left in zip(np.ndindex(*rows.shape), rows.flat, columns.flat, strict=True)
        ]
    )
    before, after = (pairs.permute(1, 0, 4, 2, 3).float() / 127.5 - 1).unbind(0)
    return torch.cat([after, after - before], 1).unflatten(0, rows.shape)


def _ticks(clip: Clip) -> list[int]:
    return [int(k) for k in np.linspace(2, clip.ticks, LOOKS)]


def _looks(clips: Sequence[Clip], view: View) -> Tensor:
    """Pairs of frames uint8 (N, LOOKS, 2, H, W, 3) of real clips, each as `view` shows it."""
    pairs = [[np.stack([view(c, k - 1), view(c, k)]) for k in _ticks(c)] for c in clips]
    return torch.from_numpy(np.array(pairs))


def _looks_dreamed(dreamer: Dreamer, clips: Sequence[Clip], batch: int) -> Tensor:
    """The same of dreams that go on from the clips' contexts."""
    looks = []
    for group in batched(clips, batch):
        wanted, pairs, last = _ticks(group[0]), [], None
        painted = {*wanted, *(k - 1 for k in wanted)}
        for k, images in enumerate(dream(dreamer, group, painted=painted)):
            if k in wanted and last is not None:
                pairs.append(np.stack([last, images], 1))
            last = images.copy()
        looks.append(torch.from_numpy(np.stack(pairs, 1)))
    return torch.cat(looks)
