"""The sense of place of a world that is new every time: no map, but what was seen on the way.

The dream counts its poses from where it began. `Stride` says how an action moves the player, walls as they
are remembered included; while real frames come in, `Odometer` puts that right from what changed between two
of them; `Rangefinder` says how far the walls of a keyframe are. With these, `recall.py` looks at what the
held keyframes show from the next pose, and small convolutions make of it what trunk and decoder use.

Nothing outside the model sets pose or depth: those of the episodes are for training alone.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from world_model.config import DynamicsConfig
from world_model.field import centres
from world_model.map import Detail, Gaze, Glance
from world_model.nearer import DEPTHS, Grain, Light, brighter, meet, points
from world_model.place import Place, Stride, compose, motion_between
from world_model.recall import (
    Lens,
    Sighting,
    Views,
    Walls,
    colours,
    finer,
    look,
    made_up,
    shrunk,
    turned_back,
    walls_near,
)

COARSE_CHANNELS = 10
KNOWN_CHANNEL, DEPTH_CHANNEL = 3, 5
"""Of these: whether anything is known along a line of sight, and the log of how far that is."""
FINE_CHANNELS = 16
COARSE_STEP = 4
"""Pixels of a picture to a line of sight of the coarse look."""
ODOMETER_ERROR = (0.0004, 0.0004, 0.001)
"""Standard deviation of a tick that was put right by an odometer."""
ODOMETER_DOUBT = 0.003
"""How far (half extents) the odometer has to be from the stride to be believed by half, and `ODOMETER_TRUST`
times the error that it expects of itself if that is more. The stride is the better by far, but for one who
runs into something that nobody remembers. Of headings the odometer is believed while actions before the
context are unknown, and not at all afterwards."""
ODOMETER_TRUST = 8.0
SEEN_UNIT = (0.02, 0.02, 0.02)
"""Of what an odometer tells."""
ODOMETER_UNIT, SURE = 0.001, (-1.0, 4.0)
"""Of the error that it expects of itself, and the range of the log of that. Surer of itself, who stands still
would count for more than who moves."""
BODY, LEEWAY = 0.026, 0.004
"""How near the player gets to a wall, in half extents: in the game he is 0.031 wide, and of what is much
nearer no network has seen a picture; as wide as that he gets caught in doors that are reckoned too narrow.
And by how much he may be nearer before he is pushed out, so that a wall that is reckoned a little differently
from tick to tick does not shake him."""
WEDGED, SLOW = 0.0006, 0.0008
"""He stays where he is whom two walls leave no room by this much, or who would slide by less than that in a
tick."""
PACES = 2
"""Into which a tick's way is taken apart, each shorter than the player is wide: nobody steps over a wall."""


class Glimpse(NamedTuple):
    """A coarse look: what it finds, and that as the networks read it, told (F, COARSE_CHANNELS, R, L)."""

    found: Sighting
    told: Tensor


def known_cells(glimpse: Glimpse, grid: tuple[int, int]) -> Tensor:
    """Which cells of a latent (F, 1, h, w) keyframes show for the most part, 1 or 0."""
    known = glimpse.found.known.flatten(0, 1)[:, None].float()
    return (F.adaptive_avg_pool2d(known, grid) > 0.5).float()


class Rangefinder(nn.Module):
    """Latent (F, C, h, w) -> log of how far the wall is in each of 4 w columns (F, 4 w).

    A real frame's latent tells that by itself. One that was dreamed grows dull within ten ticks where
    keyframes paint the picture anyway, so it is read beside what they tell, (F, COARSE_CHANNELS, 4 h, 4 w).
    """

    def __init__(self, latent_dim: int, grid: tuple[int, int], dim: int = 96, beside: int = 64) -> None:
        super().__init__()
        self.beside = nn.Sequential(
            nn.Conv2d(4 * 4 * grid[0] * COARSE_CHANNELS, beside, 1),
            nn.SiLU(),
            nn.Conv2d(beside, dim, (1, 3), padding=(0, 1)),
        )
        for parameter in self.beside[-1].parameters():
            nn.init.zeros_(parameter)
        self.enter = nn.Sequential(
            nn.Conv2d(latent_dim, dim // 2, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(dim // 2, dim // 2, 3, padding=1),
        )
        self.columns = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(dim // 2 * grid[0], dim, (1, 3), padding=(0, 1)),
            nn.SiLU(),
            nn.Conv2d(dim, dim, (1, 3), padding=(0, 1)),
            nn.SiLU(),
            nn.Conv2d(dim, 4, 1),
        )

    def forward(self, z_FChw: Tensor, told: Tensor | None = None) -> Tensor:
        x = self.columns[:2](self.enter(z_FChw).flatten(1, 2)[:, :, None])
        if told is not None:
            tall = told.flatten(1, 2).unflatten(2, (-1, 4)).transpose(2, 3).flatten(1, 2)
            x = x + self.beside(tall[:, :, None].to(z_FChw.dtype))
        return _log_depth(self.columns[2:](x)[:, :, 0].transpose(1, 2).flatten(1))


class Surveyor(nn.Module):
    """Pictures uint8 (F, 3, H, W) -> log of how far the wall is in each of W / 4 columns.

    How far a wall is shows in the row at which it meets the floor: far off, a pixel is as much as a tenth of
    the way, so a keyframe is measured in its picture and not in its latent.
    """

    def __init__(self, grid: tuple[int, int], dim: int = 32, wide: int = 128) -> None:
        super().__init__()
        self.enter = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(48, dim, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(dim, dim, 3, padding=1),
            nn.SiLU(),
        )
        self.columns = nn.Sequential(
            nn.Conv2d(4 * grid[0] * dim, wide, (1, 3), padding=(0, 1)),
            nn.SiLU(),
            nn.Conv2d(wide, wide, (1, 3), padding=(0, 1)),
            nn.SiLU(),
            nn.Conv2d(wide, 1, 1),
        )

    def forward(self, image_F3HW: Tensor) -> Tensor:
        return self.measure(image_F3HW.float() * (2 / 255) - 1)

    def measure(self, x_F3HW: Tensor) -> Tensor:
        """The same of pictures in [-1, 1]."""
        first = self.enter[1]
        assert isinstance(first, nn.Conv2d)
        tall = self.enter(x_F3HW.to(first.weight.dtype)).flatten(1, 2)[:, :, None]
        return _log_depth(self.columns(tall)[:, 0, 0])


def _log_depth(told: Tensor) -> Tensor:
    low, high = (torch.tensor(d).log().item() for d in DEPTHS)
    return (told.float() - 1.0).clamp(low, high)


class Odometer(nn.Module):
    """Two pictures in a row -> the motion (F, 3) between them, and the error (F,) of the way that is to be
    expected, in half extents: with nothing near, a step hardly shows.

    The turn is expected, and well known but at the start of a context; the second picture is turned back by
    it, which leaves the way to be seen. The way is not told: who expects a step believes in it, and what an
    odometer is for is the wall that nobody remembers.
    """

    def __init__(self, grid: tuple[int, int], dim: int = 48, wide: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(28, dim, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(dim, dim, 3, padding=1),
            nn.SiLU(),
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * dim, dim, 1),
            nn.SiLU(),
            nn.Conv2d(dim, dim, 3, padding=1),
            nn.SiLU(),
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * dim, wide, 1),
            nn.SiLU(),
            nn.Conv2d(wide, wide, 3, padding=1),
            nn.SiLU(),
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * wide, 16, 1),
            nn.Flatten(),
            nn.SiLU(),
            nn.Linear(4 * grid[0] * grid[1], 128),
            nn.SiLU(),
        )
        self.out = nn.Linear(128, 4)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self, before_F3hw: Tensor, after_F3hw: Tensor, turn_F: Tensor, lens: Lens
    ) -> tuple[Tensor, Tensor]:
        """Pictures in [-1, 1], of half the size; the turn in radians."""
        h, w = before_F3hw.shape[2:]
        turned, seen = turned_back(after_F3hw, turn_F, lens, h / w)
        x = torch.cat((before_F3hw, turned - before_F3hw * seen, seen), 1)
        first = self.layers[1]
        assert isinstance(first, nn.Conv2d)
        x = self.layers(x.to(first.weight.dtype, memory_format=torch.channels_last))
        told: Tensor = self.out(x).float()
        motion = told[:, :3] * turn_F.new_tensor(SEEN_UNIT) + F.pad(turn_F[:, None], (2, 0))
        return motion, told[:, 3].clamp(*SURE).exp() * ODOMETER_UNIT


class Recollection(nn.Module):
    """All of the sense of place of a world whose map is what it has seen."""

    def __init__(
        self,
        latent_dim: int,
        grid: tuple[int, int],
        actions: int,
        phases: int,
        config: DynamicsConfig,
    ) -> None:
        super().__init__()
        self.grid, self.heights = grid, config.heights
        self.aspect = grid[0] / grid[1]
        self.rangefinder = Rangefinder(latent_dim, grid)
        self.surveyor = Surveyor(grid)
        self.stride = Stride(actions, phases)
        self.odometer = Odometer(grid)
        self.glance = Glance(latent_dim, 4 * COARSE_CHANNELS)
        self.gaze = Gaze(COARSE_CHANNELS, FINE_CHANNELS)
        self.light, self.grain = Light(), Grain()
        self.spread = nn.Parameter(torch.tensor(1.2))
        """Tangent of half the horizontal field of view."""
        hand_on(self.gaze, FINE_CHANNELS * 3 // 4)

    @property
    def lens(self) -> Lens:
        return Lens(self.spread.float(), self.heights)

    @property
    def columns(self) -> int:
        """Columns of a keyframe whose depth is known."""
        return 4 * self.grid[1]

    def walls(self, z_FChw: Tensor, told: Tensor | None = None) -> Tensor:
        """How far the wall is in each column of latents: (F, columns). Of dreamed ones with what was `told`
        by a glimpse: where that shows a wall, it is the one that is painted."""
        walls = self.rangefinder(z_FChw, told).exp()
        if told is None:
            return walls
        ahead = told[:, :, told.shape[2] // 2 - 1 : told.shape[2] // 2 + 1]
        known = (ahead[:, KNOWN_CHANNEL] > 0.5).all(1)
        return torch.where(known, ahead[:, DEPTH_CHANNEL].exp().amin(1), walls)

    def survey(self, image_F3HW: Tensor) -> Tensor:
        """The same of keyframes, from their pictures uint8 (F, 3, H, W)."""
        return self.surveyor(image_F3HW).exp()

    def own(self, views: Views, z_BKChw: Tensor) -> Views:
        """The same keyframes, with walls as their pictures show them, or their latents where these lack."""
        image = views.image.flatten(0, 1)
        walls = self.survey(image) if image.numel() else self.walls(z_BKChw.flatten(0, 1))
        return views._replace(wall=walls.view_as(views.wall))

    @torch.no_grad()
    def felt(self, views: Views, place: Place, walls_FC: Tensor) -> Views:
        """What `move` goes by: keyframes, without pictures, and last of all how far the walls are that are
        seen now, from `place`."""
        blank = views.image.new_zeros(*views.wall.shape[:2], 0)
        pose, walls = place.pose[:, None].float(), walls_FC[:, None].float()
        here = Views(blank[:, :1], pose, walls, torch.ones_like(views.held[:, :1, :1]))
        imagined = views.imagined
        return Views(
            torch.cat((blank, blank[:, :1]), 1),
            torch.cat((views.pose, pose), 1),
            torch.cat((views.wall, walls), 1),
            torch.cat((views.held[:, :1], here.held), 2),
            imagined=None
            if imagined is None
            else torch.cat((imagined, torch.zeros_like(imagined[:, :1])), 1),
        )

    def move(self, place: Place, act: Tensor, phase: Tensor, views: Views) -> Place:
        """The place after a tick with this action (B,), by dead reckoning; who comes too near to a wall
        slides along it.

        views: what is `felt`, one pose each.
        """
        with torch.autocast(act.device.type, enabled=False):  # what it is off by adds up
            motion = self.stride(place, act, phase)
            pose = compose(place.pose, motion)
            with torch.no_grad():
                start = place.pose[:, :2]
                reach = 2 * (pose[:, :2] - start).norm(dim=-1, keepdim=True) + BODY
                walls = walls_near(views, self.lens, start, reach)
            pose = torch.cat((self._beside(walls, start, pose[:, :2]), pose[:, 2:]), 1)
            motion = motion_between(place.pose, pose)
        history = torch.cat((place.history[..., 1:], act[..., None]), -1)
        return Place(pose, motion, place.variance, history)

    @staticmethod
    @torch.no_grad()
    def _push(walls: Walls, start_B2: Tensor, way_B2: Tensor) -> tuple[Tensor, Tensor]:
        """What walls do to one who takes a pace that way: by how much (B, 2) they push him aside, and whether
        (B,) he stays where he is instead. He comes no nearer to one than he is wide, or than he was; who was
        too near is pushed out by as much as he goes."""

        def gap(xy_B2: Tensor) -> tuple[Tensor, Tensor]:
            off = xy_B2 - walls.nearest(xy_B2[:, None])[:, 0]
            away = off.norm(dim=-1)
            return off / away.clamp(min=1e-6)[:, None], away

        _, before = gap(start_B2)
        inside = before < BODY - LEEWAY
        kept = (before + inside * way_B2.norm(dim=-1)).clamp(max=BODY)
        push = torch.zeros_like(way_B2)
        for _ in range(2):  # a wall, and the one that it pushes him against
            normal, away = gap(start_B2 + way_B2 + push)
            push = push + normal * (kept - away).clamp(min=0)[:, None]
        _, away = gap(start_B2 + way_B2 + push)
        slow = (push != 0).any(-1) & ((way_B2 + push).norm(dim=-1) < SLOW / PACES)
        return push, ~inside & (slow | (kept - away > WEDGED))

    @classmethod
    def _beside(cls, walls: Walls, start_B2: Tensor, end_B2: Tensor) -> Tensor:
        """Where one ends who goes for `end`."""
        if not walls.shown.numel():
            return end_B2
        here, way = start_B2, (end_B2 - start_B2) / PACES
        for _ in range(PACES):
            push, stays = cls._push(walls, here, way)
            here = torch.where(stays[:, None], here, here + way + push)
        return here

    def stepped(self, before_F3HW: Tensor, after_F3HW: Tensor, turn_F: Tensor) -> tuple[Tensor, Tensor]:
        """The motion (F, 3) between two pictures uint8 in a row, by what is to be seen, and the error (F,) of
        the way that is to be expected. The turn is told."""
        before, after = (shrunk(x[:, None], 2)[:, 0] for x in (before_F3HW, after_F3HW))
        told: tuple[Tensor, Tensor] = self.odometer(before, after, turn_F.float(), self.lens)
        return told

    def correct(self, before_F3HW: Tensor, after_F3HW: Tensor, start: Place, end: Place) -> Place:
        """`end`, put right by the two real pictures, uint8, that were seen at `start` and there."""
        motion, error = self.stepped(before_F3HW, after_F3HW, end.motion[:, 2])
        surprise = motion - end.motion
        unknown = (end.history < 0).any(-1, keepdim=True)
        doubt = (ODOMETER_TRUST * error).clamp(min=ODOMETER_DOUBT)[:, None]
        much = surprise[:, :2].norm(dim=-1, keepdim=True) / doubt
        trust = torch.cat(((much**4 / (1 + much**4)).expand(-1, 2), unknown.float()), -1)
        motion = end.motion + trust * surprise
        variance = start.variance + end.pose.new_tensor(ODOMETER_ERROR).square()
        return end._replace(pose=compose(start.pose, motion), motion=motion, variance=variance)

    def look(self, views: Views, pose_F3: Tensor) -> Sighting:
        """A coarse look from F poses, T of each of the B dreams of `views`."""
        rows, columns = (16 // COARSE_STEP * side for side in self.grid)
        pose = pose_F3.view(len(views.held), -1, 3)
        return look(views, self.lens, pose, rows, columns, self.aspect)

    def glimpse(self, views: Views, pose_F3: Tensor) -> Glimpse:
        """A coarse look from F poses, and what it tells."""
        with torch.autocast(pose_F3.device.type, enabled=False):
            found = self.look(views, pose_F3.float())
            return Glimpse(found, self._told(views, found))

    def seen(self, views: Views, pose_F3: Tensor, glimpse: Glimpse | None = None) -> Tensor:
        """(F, SEEN_CHANNELS, h, w), the first of them a latent in (-1, 1). glimpse: from there, if there was
        one already."""
        told = (glimpse or self.glimpse(views, pose_F3)).told
        seen: Tensor = self.glance(F.pixel_unshuffle(told, 2))
        return seen

    def detail(self, views: Views, pose_F3: Tensor, glimpse: Glimpse | None = None) -> Detail:
        """What the decoder is given; glimpse as for `seen`."""
        with torch.autocast(pose_F3.device.type, enabled=False):
            pose = pose_F3.float().view(len(views.held), -1, 3)
            glimpse = glimpse or self.glimpse(views, pose_F3)
            found = finer(views, self.lens, pose, glimpse.found, COARSE_STEP, self.aspect)
            paint = colours(views.image, found).flatten(0, 1)
            paint = self.nearer(paint, views, glimpse, found, pose_F3.float())
            known = found.known.flatten(0, 1)[:, None].float()
            fine = F.pixel_unshuffle(torch.cat((paint, known), 1), 2)
        detail: Detail = self.gaze(glimpse.told, fine)
        return detail._replace(known=glimpse.found.known.flatten(0, 1)[:, None].float())

    def nearer(
        self, paint_F3HW: Tensor, views: Views, glimpse: Glimpse, found: Sighting, pose_F3: Tensor
    ) -> Tensor:
        """Colours of keyframes, 0 where nothing is known, in the light of where they are seen from, with the
        grain of what they do not tell; found: the finer look."""
        met = meet(glimpse.found, glimpse.told[:, :3])
        pixel = 2 * float(self.spread.detach()) / paint_F3HW.shape[-1]
        strength = self.grain.strength(met, made_up(views, glimpse.found), pixel)
        depth = found.depth.flatten(0, 1).clamp(max=DEPTHS[1])
        factor = self.grain(strength, points(pose_F3, depth, self.lens, self.aspect))
        factor = factor * F.interpolate(self.light(met), factor.shape[2:])
        return brighter(paint_F3HW, factor, found.known.flatten(0, 1)[:, None])

    def _told(self, views: Views, found: Sighting) -> Tensor:
        """Colour of what is seen and how it is met: (F, COARSE_CHANNELS, R, L)."""
        small = shrunk(views.image, COARSE_STEP) if views.small is None else views.small
        colour = colours(small, found).flatten(0, 1)
        rows = colour.shape[2]
        log = found.depth.flatten(0, 1).clamp(*DEPTHS).log()
        slope = F.pad(log[..., 1:] - log[..., :-1], (0, 1)).clamp(-1, 1)
        down = centres(rows, log.device)[:, None]
        known, wall = found.known.flatten(0, 1).float(), found.wall.flatten(0, 1)
        quality = torch.where(found.known, found.quality, -4.0).flatten(0, 1)
        more = torch.stack((known, quality, log, 4 * slope, wall, down.expand_as(log), log.exp().rsqrt()), 1)
        return torch.cat((colour, more), 1)


@torch.no_grad()
def hand_on(gaze: Gaze, colours: int) -> None:
    """Starts a gaze so that its first channels are the colours that it is given, and their negatives.

    silu(x) - silu(-x) is x: pairs of opposite channels carry a picture through the layers unharmed.
    """
    enter, leave = gaze.fine[0], gaze.fine[2]
    assert isinstance(enter, nn.Conv2d) and isinstance(leave, nn.Conv2d)
    for layer in (enter, leave):
        layer.weight[: 2 * colours] = 0
        layer.bias[: 2 * colours] = 0  # type: ignore[index]
    for c in range(colours):
        enter.weight[c, c], enter.weight[colours + c, c] = 1, -1
        for sign, row in ((1, c), (-1, colours + c)):
            leave.weight[row, c], leave.weight[row, colours + c] = sign, -sign
    nn.init.zeros_(gaze.choose.weight)
    nn.init.zeros_(gaze.choose.bias)  # type: ignore[arg-type]
    for block in gaze.blocks:
        last = block[-1]  # type: ignore[index]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)


@torch.no_grad()
def show_what_was_handed(out: nn.Conv2d) -> None:
    """Starts a painter so that it paints the colours that `hand_on` hands it."""
    colours = out.out_channels
    nn.init.zeros_(out.weight)
    nn.init.zeros_(out.bias)  # type: ignore[arg-type]
    for c in range(colours):
        out.weight[c, c, 1, 1], out.weight[c, colours + c, 1, 1] = 1, -1


def nothing_held(
    batch: int, keyframes: int, columns: int, size: tuple[int, int], device: torch.device
) -> Views:
    """The views of dreams that remember nothing."""
    return Views(
        torch.zeros(batch, keyframes, 3, *size, dtype=torch.uint8, device=device),
        torch.zeros(batch, keyframes, 3, device=device),
        torch.full((batch, keyframes, columns), DEPTHS[1], device=device),
        torch.zeros(batch, 1, keyframes, dtype=torch.bool, device=device),
    )
