"""The sense of place: a pose that the world keeps for itself, and the map that its weights hold.

A network that predicts pictures alone loses its place within some fifty ticks, and with it everything
that makes a room that room. A world whose source tells poses therefore learns three small things first:

- `Localizer`: where was this picture taken, and how sure is that?
- `MotionModel`: how does an action move the player from here? (walls included)
- `Map`: what is seen from there? Surfaces and their paint (`field.py`), read along lines of sight.

While a dream looks at real frames, a Kalman filter fuses what it sees with how it moved; afterwards it
goes by its own motion. Nothing outside the model sets the pose, so a dream starts from pictures alone.

Poses are (x, y, heading): x and y in half extents of the map, heading in radians, counter-clockwise.
Motions are (forward, left, turn) in the frame of the player.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from world_model.config import DynamicsConfig
from world_model.field import FREE, ROOM, Walls, compass
from world_model.map import Map

MOTION_UNIT = (0.02, 0.02, 0.1)
"""What a network's output of one means: a fiftieth of the half extent, a tenth of a radian."""
HISTORY = 6
"""Past actions that the motion model sees: turning starts slowly and walking has momentum."""
FEELERS = (0.02, 0.04, 0.07)
"""Distances from the player at which the motion model feels for walls."""
REST = (0.0006, 0.0006, 0.004)
"""What a motion model tells below this is nothing: told the last motion, it has a fixed point near rest and
not at it, and who lets go of the keys would go on for ever. A game's own motions end a little above it."""
DRIFT = 1e-6
"""Variance that a tick of dead reckoning adds."""
SIGHT_CORRELATION = 8.0
"""Consecutive frames err alike; counted as independent, they would make the filter overconfident."""


class Place(NamedTuple):
    """What a dream believes: pose (..., 3), last motion (..., 3), variance (..., 3) of the pose, and the
    last actions (..., HISTORY), newest last, -1 for none."""

    pose: Tensor
    motion: Tensor
    variance: Tensor
    history: Tensor


class Sight(NamedTuple):
    """Where a picture seems to be taken: pose (..., 3), log variance (..., 3), raw cos and sin (..., 2)."""

    pose: Tensor
    log_variance: Tensor
    direction: Tensor


def compose(pose: Tensor, motion: Tensor) -> Tensor:
    """The pose (..., 3) after a motion (..., 3) in the player's frame."""
    cos, sin = pose[..., 2].cos(), pose[..., 2].sin()
    forward, left, turn = motion.unbind(-1)
    x = pose[..., 0] + forward * cos - left * sin
    y = pose[..., 1] + forward * sin + left * cos
    return torch.stack((x, y, pose[..., 2] + turn), -1)


def motion_between(start: Tensor, end: Tensor) -> Tensor:
    """The motion in the player's frame at `start` that leads to `end`; the turn lies in [-pi, pi]."""
    cos, sin = start[..., 2].cos(), start[..., 2].sin()
    dx, dy = end[..., 0] - start[..., 0], end[..., 1] - start[..., 1]
    turn = wrap(end[..., 2] - start[..., 2])
    return torch.stack((dx * cos + dy * sin, dy * cos - dx * sin, turn), -1)


def wrap(angle: Tensor) -> Tensor:
    """The same angle in [-pi, pi]."""
    return torch.atan2(angle.sin(), angle.cos())


def fourier(x: Tensor, octaves: int) -> Tensor:
    """sin and cos of pi 2^k x for k < octaves: (..., D) -> (..., 2 D octaves)."""
    scales = math.pi * 2.0 ** torch.arange(octaves, device=x.device, dtype=x.dtype)
    angles = (x[..., None] * scales).flatten(-2)
    return torch.cat((angles.sin(), angles.cos()), -1)


def harmonics(angle: Tensor, count: int) -> Tensor:
    """sin and cos of m * angle for m = 1 .. count: (...,) -> (..., 2 count)."""
    angles = angle[..., None] * torch.arange(1, count + 1, device=angle.device, dtype=angle.dtype)
    return torch.cat((angles.sin(), angles.cos()), -1)


class PoseEmbedding(nn.Module):
    """Pose (..., 3) -> a vector (..., dim)."""

    def __init__(self, dim: int, octaves: int) -> None:
        super().__init__()
        self.octaves = octaves
        self.layers = nn.Sequential(nn.Linear(4 * octaves + 12, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, pose: Tensor) -> Tensor:
        out: Tensor = self.layers(
            torch.cat((fourier(pose[..., :2], self.octaves), harmonics(pose[..., 2], 6)), -1)
        )
        return out


class Gait(nn.Module):
    """(what a place is told of, last actions, action, phase) -> `out` numbers: the motion (..., 3) of the
    tick, if it is three."""

    def __init__(self, actions: int, phases: int, told: int, dim: int = 256, out: int = 3) -> None:
        super().__init__()
        self.embed_action = nn.Embedding(actions + 1, 8)  # the last one is "none yet"
        self.embed_phase = nn.Embedding(phases, 8)
        inputs = told + 8 * (HISTORY + 1) + 8
        self.layers = nn.Sequential(
            nn.Linear(inputs, dim), nn.SiLU(), nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim), nn.SiLU()
        )
        self.out = nn.Linear(dim, out)

    def tell(self, told: tuple[Tensor, ...], place: Place, act: Tensor, phase: Tensor) -> Tensor:
        """From what is told (..., `told` in all) beside the actions: (..., `out`)."""
        none = self.embed_action.num_embeddings - 1
        actions = torch.cat((place.history, act[..., None]), -1)
        taken = self.embed_action(torch.where(actions < 0, none, actions)).flatten(-2)
        x = torch.cat((*told, taken, self.embed_phase(phase)), -1)
        out: Tensor = self.out(self.layers(x)).float()
        return out

    def motion(self, told: tuple[Tensor, ...], place: Place, act: Tensor, phase: Tensor) -> Tensor:
        """The same as a motion (..., 3)."""
        return self.tell(told, place, act, phase) * torch.tensor(MOTION_UNIT, device=act.device)


class MotionModel(Gait):
    """(place, action, phase) -> the motion (..., 3) of the tick.

    It knows no coordinates, only how far walls are around the player, so it moves alike everywhere.
    """

    def __init__(self, actions: int, phases: int) -> None:
        super().__init__(actions, phases, 8 * len(FEELERS) + 8 + 5)

    def forward(self, place: Place, act: Tensor, phase: Tensor, walls: Walls) -> Tensor:
        unit = torch.tensor(MOTION_UNIT, device=act.device)
        pose, motion = place.pose, place.motion
        # Walls stop what runs into them, so the last motion is told in the map's frame as well.
        cos, sin = pose[..., 2].cos(), pose[..., 2].sin()
        dx, dy = motion[..., 0] * cos - motion[..., 1] * sin, motion[..., 0] * sin + motion[..., 1] * cos
        around = torch.cat([compass(radius, act.device) for radius in FEELERS])
        told = (
            walls(pose[..., None, :2] + around).detach() / FREE,
            harmonics(pose[..., 2], 4),
            motion / unit,
            torch.stack((dx, dy), -1) / unit[:2],
        )
        motion = self.motion(told, place, act, phase)
        if self.training:  # or what is small would never learn to be smaller
            return motion
        return torch.where(motion.abs() < motion.new_tensor(REST), 0.0, motion)


class Stride(nn.Module):
    """(place, action, phase) -> the motion (..., 3) of the tick, where nothing is in the way.

    Momentum and friction make a tick's motion linear in the last one; how, hangs on the actions of late. It
    knows neither coordinates nor compass nor walls: those are geometry.
    """

    def __init__(self, actions: int, phases: int) -> None:
        super().__init__()
        self.gait = Gait(actions, phases, 0, out=12)

    def forward(self, place: Place, act: Tensor, phase: Tensor) -> Tensor:
        unit = torch.tensor(MOTION_UNIT, device=act.device)
        told = self.gait.tell((), place, act, phase)
        kept = told[..., :9].unflatten(-1, (3, 3)) @ (place.motion / unit)[..., None]
        return (kept[..., 0] + told[..., 9:]) * unit


class Localizer(nn.Module):
    """Latent (F, C, h, w) -> `Sight`."""

    def __init__(self, latent_dim: int, grid: tuple[int, int], dim: int = 64) -> None:
        super().__init__()
        cells = grid[0] * grid[1] // 4
        self.layers = nn.Sequential(
            nn.Conv2d(latent_dim, dim, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(dim, dim, 3, padding=1),
            nn.SiLU(),
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * dim, 2 * dim, 1),
            nn.SiLU(),
            nn.Conv2d(2 * dim, 24, 1),
            nn.Flatten(),
            nn.SiLU(),
            nn.Linear(24 * cells, 128),
            nn.SiLU(),
            nn.Linear(128, 6),
        )

    def forward(self, z_FChw: Tensor) -> Sight:
        out = self.layers(z_FChw).float()
        direction = out[:, 2:4]
        pose = torch.cat((out[:, :2], torch.atan2(direction[:, 1:], direction[:, :1])), 1)
        log_variance = out[:, [4, 4, 5]].clamp(-12, 2)
        return Sight(pose, log_variance, direction)


class PlaceModel(nn.Module):
    """All of the sense of place of one world."""

    def __init__(
        self,
        latent_dim: int,
        grid: tuple[int, int],
        actions: int,
        phases: int,
        config: DynamicsConfig,
    ) -> None:
        super().__init__()
        self.localizer = Localizer(latent_dim, grid)
        self.motion: MotionModel | Stride = (
            Stride(actions, phases) if config.strides else MotionModel(actions, phases)
        )
        self.map = Map(latent_dim, grid, config)

    @staticmethod
    def nowhere(batch: int, device: torch.device | str) -> Place:
        """The place before anything was seen."""
        zeros = torch.zeros(batch, 3, device=device)
        history = torch.full((batch, HISTORY), -1, dtype=torch.long, device=device)
        return Place(zeros, zeros, zeros + 100.0, history)

    def look(self, place: Place, z_FChw: Tensor) -> Place:
        """Fuses the pose with what a real frame shows (a Kalman filter with a diagonal covariance)."""
        sight = self.localizer(z_FChw)
        difference = sight.pose - place.pose
        surprise = torch.cat((difference[:, :2], wrap(difference[:, 2:])), 1)
        noise = sight.log_variance.exp() * SIGHT_CORRELATION
        # A sight far outside of what both variances allow is a mistake of sight: trust it less.
        outlier = (surprise.square() / (place.variance + noise) / 9).clamp(min=1)
        gain = place.variance / (place.variance + noise * outlier)
        return place._replace(pose=place.pose + gain * surprise, variance=(1 - gain) * place.variance)

    def move(self, place: Place, act: Tensor, phase: Tensor) -> Place:
        """The place after a tick with this action (F,), by dead reckoning."""
        walls = self.map.surfaces.walls
        if isinstance(self.motion, Stride):
            with torch.autocast(act.device.type, enabled=False):  # what it is off by adds up
                motion = self.motion(place, act, phase)
        else:
            motion = self.motion(place, act, phase, walls)
        pose = _stay_out(place.pose, compose(place.pose, motion), walls)
        history = torch.cat((place.history[..., 1:], act[..., None]), -1)
        return Place(pose, motion_between(place.pose, pose), place.variance + DRIFT, history)


def _stay_out(start: Tensor, end: Tensor, walls: Walls) -> Tensor:
    """`end`, or where sliding along a wall leads when `end` lies within one: nobody gets through walls."""
    ways = torch.stack(
        (
            end[..., :2],
            torch.stack((end[..., 0], start[..., 1]), -1),
            torch.stack((start[..., 0], end[..., 1]), -1),
        ),
        -2,
    )
    free = walls(ways).detach() > ROOM
    here = torch.where(free[..., 2:], ways[..., 2, :], start[..., :2])
    here = torch.where(free[..., 1:2], ways[..., 1, :], here)
    here = torch.where(free[..., :1], ways[..., 0, :], here)
    return torch.cat((here, end[..., 2:]), -1)
