"""Numbers on a status bar: what they are, how they change, how they are written.

A latent has no place for the difference of a 6 and an 8, and a network that paints the mean of both writes
neither. Where a source tells its numbers and where they stand in the picture, they are kept as numbers: a
small network tells the odds of every change, the dream draws, and what is written are learned glyphs.

Axes: B dreams, G gauges, N slots of things, D digits. Nothing outside the model sets a number: a dream reads
them off its first real pictures.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from world_model.behaviour import pick
from world_model.config import CastConfig
from world_model.recall import into_view
from world_model.things import Things

DIGITS = 3
"""Of a number, flush right."""
BLANK = 10
"""The glyph of a digit that is not written."""
CHANGES = 32
"""Different changes of a number in a tick, none among them."""
LARGEST = 10**DIGITS - 1


class Readings(NamedTuple):
    """value (B, G), and shown (B, G), what is written: a bar is drawn before its number changes; hidden (B,
    H), what the network remembers."""

    value: Tensor
    shown: Tensor
    hidden: Tensor


class Gauges(nn.Module):
    """All that a world knows of its numbers."""

    def __init__(self, config: CastConfig, actions: int, phases: int, dim: int = 64) -> None:
        super().__init__()
        self.config, self.dim = config, dim
        count = len(config.gauges)
        width, height = (config.boxes[2] // DIGITS, config.boxes[3]) if count else (1, 1)
        self.glyphs: Tensor
        self.steps: Tensor
        self.register_buffer("glyphs", torch.zeros(count, DIGITS, BLANK + 1, 3 * height * width))
        """RGB in [0, 1] of each digit at each place."""
        self.register_buffer("steps", torch.zeros(count * CHANGES))
        """By how much each gauge may change."""
        self.meaning: Tensor
        self.ends: Tensor
        self.register_buffer("meaning", torch.arange(actions).float().repeat(count, 1))
        """What each action (G, A) amounts to while a gauge stands at nothing: no ammunition, no shot."""
        self.register_buffer("ends", torch.zeros(count))
        """Of each gauge, 1 or 0: whether all is over once it stands at nothing."""
        self.embed_action, self.embed_phase = nn.Embedding(actions, 12), nn.Embedding(phases, 8)
        self.embed_kind = nn.Embedding(config.kinds + 1, 8)
        self.near = nn.Sequential(nn.Linear(8 + 4, 48), nn.SiLU(), nn.Linear(48, 48))
        self.enter = nn.Sequential(nn.Linear(12 + 8 + 48 + 3 * count, 96), nn.SiLU())
        self.cell = nn.GRUCell(96, dim)
        self.out = nn.Sequential(nn.Linear(96 + dim, 96), nn.SiLU(), nn.Linear(96, count * CHANGES))

    @property
    def boxes(self) -> list[tuple[int, int, int, int]]:
        """x, y, width, height of each number in the picture."""
        flat = self.config.boxes
        return [(flat[i], flat[i + 1], flat[i + 2], flat[i + 3]) for i in range(0, len(flat), 4)]

    def forward(
        self, readings: Readings, things: Things, pose_B3: Tensor, act_B: Tensor, phase_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, G, CHANGES) of the changes in a tick, and what is remembered afterwards."""
        ahead, right = into_view(things.at[..., :2], pose_B3[:, None])
        away = torch.stack((ahead, right), -1).norm(dim=-1).clamp(min=0.01)
        where = torch.stack((ahead / 0.1, right / 0.1, 0.05 / away, away), -1).clamp(-5, 5)
        each = self.near(torch.cat((self.embed_kind(things.kind), where), -1))
        there = (things.kind > 0) & (things.look != 0)
        near = each.masked_fill(~there[..., None], -9.0).amax(1)
        value = readings.value.float()
        numbers = torch.cat((value / 100, (value == 0).float(), (value >= 100).float()), 1)
        told = (self.embed_action(act_B), self.embed_phase(phase_B), near, numbers)
        x = self.enter(torch.cat(told, -1))
        hidden = self.cell(x, readings.hidden)
        odds = self.out(torch.cat((x, hidden), -1))
        return odds.view(len(x), -1, CHANGES), hidden

    def step(
        self,
        readings: Readings,
        things: Things,
        pose_B3: Tensor,
        act_B: Tensor,
        phase_B: Tensor,
        chance: Tensor,
    ) -> Readings:
        """The numbers after a tick; chance (B, G) in [0, 1)."""
        odds, hidden = self(readings, things, pose_B3, act_B, phase_B)
        change = pick(odds, chance)
        by = self.steps.view(-1, CHANGES).expand(len(change), -1, -1).gather(2, change[..., None])[..., 0]
        value = (readings.value + by.round().long()).clamp(0, LARGEST)
        return Readings(value, readings.value, hidden)

    def meant(self, readings: Readings, act_B: Tensor) -> Tensor:
        """The actions, as what they amount to at these numbers."""
        for g in range(self.ends.numel()):
            other = self.meaning[g].long()[act_B]
            act_B = torch.where(readings.value[:, g] == 0, other, act_B)
        return act_B

    def over(self, readings: Readings) -> Tensor:
        """Which dreams (B,) are over: it shows that a number is at nothing without which there is no more."""
        nothing = (readings.value == 0) & (readings.shown == 0)
        return (nothing & (self.ends > 0)).any(1)

    def nothing(self, batch: int, device: torch.device | str) -> Readings:
        """Before anything was read."""
        value = torch.zeros(batch, len(self.boxes), dtype=torch.long, device=device)
        return Readings(value, value, torch.zeros(batch, self.dim, device=device))

    def watch(self, readings: Readings, picture_B3HW: Tensor) -> Readings:
        """Put right by a real picture in [-1, 1]: what it shows is what the numbers were a tick ago, so a
        change that was drawn since is kept."""
        shown = self.read(picture_B3HW)
        return readings._replace(value=shown + readings.value - readings.shown, shown=shown)

    def read(self, picture_B3HW: Tensor) -> Tensor:
        """The numbers (B, G) that a picture in [-1, 1] shows, by the glyphs that fit best."""
        values = []
        for g in range(len(self.boxes)):
            seen = self.cut(picture_B3HW, g)
            miss = (seen[:, :, None] - self.glyphs[g].float()).square().sum(-1)
            digit = miss.argmin(-1)
            number = torch.zeros(len(seen), dtype=torch.long, device=seen.device)
            for k in range(DIGITS):
                number = torch.where(digit[:, k] == BLANK, number, 10 * number + digit[:, k])
            values.append(number)
        return torch.stack(values, 1)

    def cut(self, picture_B3HW: Tensor, gauge: int) -> Tensor:
        """The digits of a gauge in a picture, in [0, 1]: (B, DIGITS, 3 h w)."""
        x, y, width, height = self.boxes[gauge]
        each = width // DIGITS
        box = (picture_B3HW[:, :, y : y + height, x : x + DIGITS * each].float() + 1) / 2
        return box.unflatten(3, (DIGITS, each)).permute(0, 3, 1, 2, 4).flatten(2)

    def write(self, picture_B3HW: Tensor, shown_BG: Tensor) -> Tensor:
        """The picture in [-1, 1] with these numbers on its bar."""
        out = picture_B3HW.clone()
        for g, (x, y, width, height) in enumerate(self.boxes):
            each = width // DIGITS
            glyphs = self.glyphs[g].float()
            for k, digit in enumerate(digits(shown_BG[:, g]).unbind(1)):
                glyph = glyphs[k][digit].unflatten(1, (3, height, each)) * 2 - 1
                left = x + k * each
                out[:, :, y : y + height, left : left + each] = glyph.to(out.dtype)
        return out


def digits(numbers: Tensor) -> Tensor:
    """Numbers (B,) -> the glyphs (B, DIGITS) that write them, flush right."""
    places = torch.stack([numbers // 10**k % 10 for k in reversed(range(DIGITS))], 1)
    written = torch.stack([numbers >= (10**k if k else 0) for k in reversed(range(DIGITS))], 1)
    return torch.where(written, places, BLANK)


def gauge_loss(odds: Tensor, change: Tensor) -> Tensor:
    """Nats a gauge and tick: logits (..., G, CHANGES) against what it was (..., G)."""
    return F.cross_entropy(odds.flatten(0, -2), change.flatten())
