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
from torch.nn import functional as F

from world_model.config import DynamicsConfig
from world_model.field import COARSE_CHANNELS, FINE_CHANNELS, FREE, ROOM, Surfaces, Walls, compass

MOTION_UNIT = (0.02, 0.02, 0.1)
"""What a network's output of one means: a fiftieth of the half extent, a tenth of a radian."""
HISTORY = 6
"""Past actions that the motion model sees: turning starts slowly and walking has momentum."""
SEEN_CHANNELS = 64
DETAIL_CHANNELS = 64
FINE_DETAIL = 32
FEELERS = (0.02, 0.04, 0.07)
"""Distances from the player at which the motion model feels for walls."""
DRIFT = 1e-6
"""Variance that a tick of dead reckoning adds."""
SIGHT_CORRELATION = 8.0
"""Consecutive frames err alike; counted as independent, they would make the filter overconfident."""


SETTLE_FROM = 10
"""Frame whose pose is searched for. Before it, momentum from before the context is not yet known."""
SETTLE_FRAMES = 5
SETTLE_ROUNDS = ((0.06, 96), (0.025, 48), (0.012, 48), (0.006, 48), (0.003, 32), (0.0015, 32))
"""Spread (half extents; twice that in radians) and number of the draws of each round of `settle`."""
SETTLE_ELITE = 4
SHARPEN_ROUNDS = ((0.004, 48), (0.002, 48), (0.001, 32))
SHARPEN_BACK = (0, 2, 5, 9)
"""And of the search for the end pose alone, by the frames so many ticks before the end."""
SETTLED = 1e-5
"""Variance of a settled pose."""


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


class MotionModel(nn.Module):
    """(place, action, phase) -> the motion (..., 3) of the tick.

    It knows no coordinates, only how far walls are around the player, so it moves alike everywhere.
    """

    def __init__(self, actions: int, phases: int, dim: int = 256) -> None:
        super().__init__()
        self.embed_action = nn.Embedding(actions + 1, 8)  # the last one is "none yet"
        self.embed_phase = nn.Embedding(phases, 8)
        inputs = 8 * len(FEELERS) + 8 + 5 + 8 * (HISTORY + 1) + 8
        self.layers = nn.Sequential(
            nn.Linear(inputs, dim), nn.SiLU(), nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim), nn.SiLU()
        )
        self.out = nn.Linear(dim, 3)

    def forward(self, place: Place, act: Tensor, phase: Tensor, walls: Walls) -> Tensor:
        unit = torch.tensor(MOTION_UNIT, device=act.device)
        pose, motion = place.pose, place.motion
        # Walls stop what runs into them, so the last motion is told in the map's frame as well.
        cos, sin = pose[..., 2].cos(), pose[..., 2].sin()
        dx, dy = motion[..., 0] * cos - motion[..., 1] * sin, motion[..., 0] * sin + motion[..., 1] * cos
        none = self.embed_action.num_embeddings - 1
        actions = torch.cat((place.history, act[..., None]), -1)
        around = torch.cat([compass(radius, act.device) for radius in FEELERS])
        told = (
            walls(pose[..., None, :2] + around).detach() / FREE,
            harmonics(pose[..., 2], 4),
            motion / unit,
            torch.stack((dx, dy), -1) / unit[:2],
            self.embed_action(torch.where(actions < 0, none, actions)).flatten(-2),
            self.embed_phase(phase),
        )
        return self.out(self.layers(torch.cat(told, -1))).float() * unit


class Detail(NamedTuple):
    """What the map gives the decoder: coarse (F, DETAIL_CHANNELS, 4 h, 4 w) and fine (F, FINE_DETAIL,
    8 h, 8 w)."""

    coarse: Tensor
    fine: Tensor


class Glance(nn.Module):
    """What is read along two by two lines of sight in each cell of the latent -> SEEN_CHANNELS features."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim, c = latent_dim, SEEN_CHANNELS
        self.enter = nn.Sequential(
            nn.Conv2d(COARSE_CHANNELS, c, 1), nn.SiLU(), nn.PixelUnshuffle(2), nn.Conv2d(4 * c, c, 1)
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.SiLU(), nn.Conv2d(c, c, 3, padding=1), nn.SiLU(), nn.Conv2d(c, c, 3, padding=1))
            for _ in range(1)
        )
        self.out = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, read: Tensor) -> Tensor:
        h = self.enter(_like(read, self.out))
        for block in self.blocks:
            h = h + block(h)
        out = self.out(F.silu(h)).float()
        return torch.cat((out[:, : self.latent_dim].tanh(), out[:, self.latent_dim :]), 1)


class Gaze(nn.Module):
    """What is read along a line of sight for each 4 x 4 and each 2 x 2 pixels -> `Detail`."""

    def __init__(self) -> None:
        super().__init__()
        d, f = DETAIL_CHANNELS, FINE_DETAIL
        self.coarse = nn.Sequential(
            nn.Conv2d(COARSE_CHANNELS, d, 1), nn.SiLU(), nn.Conv2d(d, d, 3, padding=1)
        )
        self.choose = nn.Conv2d(d, 4 * f, 1)
        self.fine = nn.Sequential(nn.Conv2d(FINE_CHANNELS, d, 1), nn.SiLU(), nn.Conv2d(d, f, 1))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.SiLU(), nn.Conv2d(f, f, 3, padding=1), nn.SiLU(), nn.Conv2d(f, f, 1))
            for _ in range(2)
        )

    def forward(self, read: Tensor, read_fine: Tensor) -> Detail:
        coarse = self.coarse(_like(read, self.choose))
        # The coarse levels choose among the textures that share the tiles.
        choice = F.pixel_shuffle(self.choose(F.silu(coarse)), 2)
        fine = self.fine(_like(read_fine, self.choose)) * (1 + choice)
        for block in self.blocks:
            fine = fine + block(fine)
        return Detail(coarse, fine)


class Map(nn.Module):
    """What is seen from a pose, coarsely for the trunk and finely for the decoder."""

    def __init__(self, latent_dim: int, grid: tuple[int, int], config: DynamicsConfig) -> None:
        super().__init__()
        self.grid = grid
        self.surfaces = Surfaces(config.plan_size, config.paint_bits, config.tile, config.heights)
        self.glance, self.gaze = Glance(latent_dim), Gaze()

    def seen(self, pose_F3: Tensor) -> Tensor:
        """(F, SEEN_CHANNELS, h, w), the first of them a latent in (-1, 1)."""
        rows, columns = self.grid
        read = self.surfaces.read(pose_F3, 2 * rows, 2 * columns)
        seen: Tensor = self.glance(read)
        return seen

    def detail(self, pose_F3: Tensor) -> Detail:
        """What the decoder is given."""
        rows, columns = self.grid
        coarse = self.surfaces.read(pose_F3, 4 * rows, 4 * columns)
        fine = self.surfaces.read(pose_F3, 8 * rows, 8 * columns, fine=True)
        detail: Detail = self.gaze(coarse, fine)
        return detail


def _like(x: Tensor, layer: nn.Conv2d) -> Tensor:
    return x.to(layer.weight.dtype, memory_format=torch.channels_last)


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


class _Walk(NamedTuple):
    """A stretch of context: the place it starts at, act and phase (B, T - 1), z (B, T, C, h, w)."""

    start: Place
    act: Tensor
    phase: Tensor
    z: Tensor


def _scatter(best_BK3: Tensor, spread: float, count: int, generator: torch.Generator) -> Tensor:
    """The best poses so far and `count` draws around them, (B, K + count, 3)."""
    batch, device = len(best_BK3), best_BK3.device
    picks = torch.randint(0, best_BK3.shape[1], (count,), generator=generator).to(device)
    draws = torch.randn(batch, count, 3, generator=generator).to(device)
    unit = spread * torch.tensor([1.0, 1.0, 2.0], device=device)
    return torch.cat((best_BK3, best_BK3[:, picks] + draws * unit), 1)


def _elite(candidates_BN3: Tensor, error_BN: Tensor, count: int) -> Tensor:
    """The `count` candidates with the least error, best first."""
    count = min(count, candidates_BN3.shape[1])
    chosen = error_BN.topk(count, dim=1, largest=False).indices
    return candidates_BN3.gather(1, chosen[..., None].expand(-1, -1, 3))


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
        self.motion = MotionModel(actions, phases)
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

    def settle(
        self, path: list[Place], z_BTChw: Tensor, act: Tensor, phase: Tensor, generator: torch.Generator
    ) -> Place:
        """Sharpens the place after a context by looking for the one from which the map shows the context.

        path: the places at the T frames; act, phase (B, T - 1). A cross-entropy search over the pose at an
        early frame, when the walk had already told its speed: candidates are what each frame's sight says
        about it and draws around them, then ever closer draws around the best. Each walks on from there
        by the motion model, walls included, and is judged by what the map shows along its way.
        """
        ticks = z_BTChw.shape[1]
        first = min(SETTLE_FROM, ticks - 1)
        walked = [torch.zeros_like(path[0].pose)]
        for after in path[1:]:
            walked.append(compose(walked[-1], after.motion))
        sighted = [
            compose(self.localizer(z_BTChw[:, t]).pose, motion_between(walked[t], walked[first]))
            for t in range(ticks)
        ]
        best = torch.stack((path[first].pose, *sighted), 1)
        walk = _Walk(path[first], act[:, first:], phase[:, first:], z_BTChw[:, first:])
        for spread, count in SETTLE_ROUNDS:
            candidates = _scatter(best, spread, count, generator)
            error = self._judge(candidates, walk) + self._outside(candidates)
            best = _elite(candidates, error, SETTLE_ELITE)
        track = self._walk(best[:, 0], walk)
        last = path[-1]
        return last._replace(
            pose=self._sharpen(torch.stack([p.pose for p in track], 1), walk.z, generator),
            motion=track[-1].motion,
            variance=torch.full_like(last.variance, SETTLED),
        )

    def _sharpen(self, track_BT3: Tensor, z_BTChw: Tensor, generator: torch.Generator) -> Tensor:
        """The end of a track (B, 3), moved with the track's last stretch to where the map shows that best.

        What the walk got a little wrong on its way no longer counts here.
        """
        batch, ticks = track_BT3.shape[:2]
        looks = [max(0, ticks - 1 - back) for back in SHARPEN_BACK]
        end = track_BT3[:, -1:]
        offsets = motion_between(end.expand(-1, len(looks), -1), track_BT3[:, looks])
        target = z_BTChw[:, looks]
        best = end
        for spread, count in SHARPEN_ROUNDS:
            candidates = _scatter(best, spread, count, generator)
            poses = compose(candidates[:, :, None], offsets[:, None])
            shown = self.map.seen(poses.flatten(0, 2))[:, : target.shape[2]]
            shown = shown.unflatten(0, (batch, -1, len(looks)))
            error = (shown - target[:, None]).square().mean((2, 3, 4, 5)) + self._outside(candidates)
            best = _elite(candidates, error, SETTLE_ELITE)
        return best[:, 0]

    def _outside(self, pose: Tensor) -> Tensor:
        """One for each pose (..., 3) where nobody can stand, zero for the others."""
        return (self.map.surfaces.walls(pose[..., :2]) < ROOM).float()

    def _walk(self, start_B3: Tensor, walk: _Walk) -> list[Place]:
        """The places along a walk from a pose."""
        places = [walk.start._replace(pose=start_B3)]
        for t in range(walk.act.shape[1]):
            places.append(self.move(places[-1], walk.act[:, t], walk.phase[:, t]))
        return places

    def _judge(self, candidates_BN3: Tensor, walk: _Walk) -> Tensor:
        """Mean squared error (B, N) of what the map shows along the walk from each candidate."""
        batch, count = candidates_BN3.shape[:2]

        def each(x: Tensor) -> Tensor:
            return x[:, None].expand(-1, count, *x.shape[1:])

        place = Place(
            candidates_BN3, each(walk.start.motion), each(walk.start.variance), each(walk.start.history)
        )
        steps = walk.act.shape[1]
        looks = {round(i * steps / (SETTLE_FRAMES - 1)) for i in range(SETTLE_FRAMES)}
        error = candidates_BN3.new_zeros(batch, count)
        for t in range(steps + 1):
            if t in looks:
                shown = self.map.seen(place.pose.flatten(0, 1))[:, : walk.z.shape[2]].unflatten(
                    0, (batch, count)
                )
                error = error + (shown - walk.z[:, t, None]).square().mean((2, 3, 4))
            if t < steps:
                place = self.move(place, each(walk.act[:, t]), each(walk.phase[:, t]))
        return error / len(looks)

    def move(self, place: Place, act: Tensor, phase: Tensor) -> Place:
        """The place after a tick with this action (F,), by dead reckoning."""
        walls = self.map.surfaces.walls
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
