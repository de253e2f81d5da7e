"""The sense of place of a world that is new every time: no map, but what was seen on the way.

The dream counts its poses from where it began. `Stride` says how an action moves the player, walls as they
are remembered included; while real frames come in, `Odometer` puts that right from what changed between two
of them; `Rangefinder` says how far the walls of a keyframe are. With these, `recall.py` looks at what the
held keyframes show from the next pose, and small convolutions make of it what trunk and decoder use.

Nothing outside the model sets pose or depth: those of the episodes are for training alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from world_model.config import DynamicsConfig
from world_model.field import FREE, ROOM, centres, compass
from world_model.map import Detail, Gaze, Glance
from world_model.place import FEELERS, MOTION_UNIT, Gait, Place, compose
from world_model.recall import Lens, Sighting, Views, colours, finer, look, onto_plan, shrunk, wall_lines

COARSE_CHANNELS = 10
FINE_CHANNELS = 16
COARSE_STEP = 4
"""Pixels of a picture to a line of sight of the coarse look."""
DEPTHS = (0.01, 8.0)
"""Between which walls are told, in half extents."""
ODOMETER_ERROR = (0.0004, 0.0004, 0.001)
"""Standard deviation of a tick that was put right by an odometer."""
ODOMETER_DOUBT = (0.004, 0.006)
"""How far (half extents) the odometer has to be from the stride to be believed by half: while actions before
the context are unknown, and from then on. The stride is the better by far, but for one who runs into
something that nobody remembers. Of headings the odometer is believed at first and not at all afterwards."""
WAY = 4
"""Points of the way of a tick at which walls are felt for, its start among them."""


class Rangefinder(nn.Module):
    """Latent (F, C, h, w) -> log of how far the wall is in each of 4 w columns (F, 4 w)."""

    def __init__(self, latent_dim: int, grid: tuple[int, int], dim: int = 96) -> None:
        super().__init__()
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

    def forward(self, z_FChw: Tensor) -> Tensor:
        tall = self.enter(z_FChw).flatten(1, 2)[:, :, None]
        return _log_depth(self.columns(tall)[:, :, 0].transpose(1, 2).flatten(1))


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


class Stride(nn.Module):
    """(place, action, phase, how far walls are around the player) -> the motion (..., 3) of the tick.

    Where nothing is near, momentum and friction make a tick's motion linear in the last one; how, hangs on
    the actions of late. What walls do to that is added where there are any. It knows neither coordinates nor
    compass: a dream's own begin anywhere.
    """

    def __init__(self, actions: int, phases: int) -> None:
        super().__init__()
        self.free = Gait(actions, phases, 0, out=12)
        self.hindered = Gait(actions, phases, 8 * len(FEELERS) + 3)

    def forward(self, place: Place, act: Tensor, phase: Tensor, around: Tensor) -> Tensor:
        around = around.detach() / FREE
        near = 1 - around.amin(-1, keepdim=True).clamp(max=1)
        last = place.motion / torch.tensor(MOTION_UNIT, device=act.device)
        return self.coast(place, act, phase) + near * self.hindered.motion((around, last), place, act, phase)

    def coast(self, place: Place, act: Tensor, phase: Tensor) -> Tensor:
        """The motion (..., 3) where no wall is near."""
        unit = torch.tensor(MOTION_UNIT, device=act.device)
        told = self.free.tell((), place, act, phase)
        kept = told[..., :9].unflatten(-1, (3, 3)) @ (place.motion / unit)[..., None]
        return (kept[..., 0] + told[..., 9:]) * unit


class Odometer(nn.Module):
    """Two latents in a row and the motion (F, 3) that was expected between them -> the motion that was."""

    def __init__(self, latent_dim: int, grid: tuple[int, int], dim: int = 64) -> None:
        super().__init__()
        cells = grid[0] * grid[1] // 4
        self.expect = nn.Linear(3, dim)
        self.stem = nn.Conv2d(2 * latent_dim, dim, 3, padding=1)
        self.layers = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(dim, dim, 3, padding=1),
            nn.SiLU(),
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * dim, 2 * dim, 1),
            nn.SiLU(),
            nn.Conv2d(2 * dim, 16, 1),
            nn.Flatten(),
            nn.SiLU(),
            nn.Linear(16 * cells, 128),
            nn.SiLU(),
        )
        self.out = nn.Linear(128, 3)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, before: Tensor, after: Tensor, motion: Tensor) -> Tensor:
        unit = torch.tensor(MOTION_UNIT, device=motion.device)
        x = self.stem(torch.cat((before, after - before), 1))
        x = x + self.expect(motion / unit)[..., None, None]
        return motion + 0.2 * unit * self.out(self.layers(x)).float()


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
        self.odometer = Odometer(latent_dim, grid)
        self.glance = Glance(latent_dim, 4 * COARSE_CHANNELS)
        self.gaze = Gaze(COARSE_CHANNELS, FINE_CHANNELS)
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

    def walls(self, z_FChw: Tensor) -> Tensor:
        """How far the wall is in each column of real or dreamed latents: (F, columns)."""
        return self.rangefinder(z_FChw).exp()

    def survey(self, image_F3HW: Tensor) -> Tensor:
        """The same of keyframes, from their pictures uint8 (F, 3, H, W)."""
        return self.surveyor(image_F3HW).exp()

    def own(self, views: Views, z_BKChw: Tensor) -> Views:
        """The same keyframes, with walls as their pictures show them, or their latents where these lack."""
        image = views.image.flatten(0, 1)
        walls = self.survey(image) if image.numel() else self.walls(z_BKChw.flatten(0, 1))
        return views._replace(wall=walls.view_as(views.wall))

    @torch.no_grad()
    def felt(self, views: Views, place: Place, z_FChw: Tensor) -> Views:
        """What `move` goes by: keyframes, without pictures, and the present latents, seen from `place`."""
        blank = views.image.new_zeros(*views.wall.shape[:2], 0)
        pose, walls = place.pose[:, None].float(), self.walls(z_FChw)[:, None].float()
        return Views(
            torch.cat((blank, blank[:, :1]), 1),
            torch.cat((views.pose, pose), 1),
            torch.cat((views.wall, walls), 1),
            torch.cat((views.held[:, :1], torch.ones_like(views.held[:, :1, :1])), 2),
        )

    def around(self, views: Views, pose_F3: Tensor) -> Tensor:
        """How far remembered walls are from points around the player (F, 8 len(FEELERS)), ahead first.

        F poses are T of each of the B dreams of `views`, in this order; all keep to what the first holds.
        """
        ring = torch.cat([compass(radius, pose_F3.device) for radius in FEELERS])
        feelers = onto_plan(ring[:, 0], ring[:, 1], pose_F3[:, None])
        return self._clear(views, feelers)

    def move(self, place: Place, act: Tensor, phase: Tensor, views: Views) -> Place:
        """The place after a tick with this action (F,), by dead reckoning; nobody gets through a wall.

        views: what is `felt`, one pose each.
        """
        with torch.autocast(act.device.type, enabled=False):  # what it is off by adds up
            motion = self.stride(place, act, phase, self.around(views, place.pose))
        # A wall has no thickness in memory: feel for it all along the way.
        parts = torch.linspace(0, 1, WAY, device=motion.device)[:, None] * motion[:, None]
        free = self._clear(views, compose(place.pose[:, None], parts)[..., :2])
        blocked = (free[:, 1:].amin(1) < ROOM) & (free[:, 1:].amin(1) < free[:, 0])
        motion = torch.where(blocked[:, None], motion * motion.new_tensor([0.0, 0.0, 1.0]), motion)
        pose = compose(place.pose, motion)
        history = torch.cat((place.history[..., 1:], act[..., None]), -1)
        return Place(pose, motion, place.variance, history)

    def correct(self, before: Tensor, after: Tensor, start: Place, end: Place) -> Place:
        """`end`, put right by the two real latents that were seen at `start` and there."""
        surprise = self.odometer(before, after, end.motion) - end.motion
        unknown = (end.history < 0).any(-1, keepdim=True)
        doubt = torch.where(unknown, *ODOMETER_DOUBT) ** 4
        much = surprise[:, :2].square().sum(-1, keepdim=True).square()
        trust = torch.cat(((much / (much + doubt)).expand(-1, 2), unknown.float()), -1)
        motion = end.motion + trust * surprise
        variance = start.variance + end.pose.new_tensor(ODOMETER_ERROR).square()
        return end._replace(pose=compose(start.pose, motion), motion=motion, variance=variance)

    def look(self, views: Views, pose_F3: Tensor) -> Sighting:
        """A coarse look from F poses, T of each of the B dreams of `views`."""
        rows, columns = (16 // COARSE_STEP * side for side in self.grid)
        pose = pose_F3.view(len(views.held), -1, 3)
        return look(views, self.lens, pose, rows, columns, self.aspect)

    def seen(self, views: Views, pose_F3: Tensor) -> Tensor:
        """(F, SEEN_CHANNELS, h, w), the first of them a latent in (-1, 1)."""
        with torch.autocast(pose_F3.device.type, enabled=False):
            found = self.look(views, pose_F3.float())
            told = self._told(views, found)
        seen: Tensor = self.glance(F.pixel_unshuffle(told, 2))
        return seen

    def detail(self, views: Views, pose_F3: Tensor) -> Detail:
        """What the decoder is given."""
        with torch.autocast(pose_F3.device.type, enabled=False):
            pose = pose_F3.float().view(len(views.held), -1, 3)
            coarse = self.look(views, pose_F3.float())
            told = self._told(views, coarse)
            found = finer(views, self.lens, pose, coarse, COARSE_STEP, self.aspect)
            paint = colours(views.image, found).flatten(0, 1)
            known = found.known.flatten(0, 1)[:, None].float()
            fine = F.pixel_unshuffle(torch.cat((paint, known), 1), 2)
        detail: Detail = self.gaze(told, fine)
        return detail._replace(known=coarse.known.flatten(0, 1)[:, None].float())

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
    def _clear(self, views: Views, xy_FN2: Tensor) -> Tensor:
        """Distance (F, N) from points to the nearest remembered wall, at most FREE."""
        start, end, shown = wall_lines(views, self.lens)
        asked = xy_FN2.reshape(len(start), -1, 1, 2).float()
        along = end - start
        part = ((asked - start) * along).sum(-1) / along.square().sum(-1).clamp(min=1e-9)
        away = (start + part.clamp(0, 1)[..., None] * along - asked).norm(dim=-1)
        return away.masked_fill(~shown, FREE).amin(-1).view(xy_FN2.shape[:2]).clamp(max=FREE)


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
