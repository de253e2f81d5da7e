"""Memory as places: what held keyframes show from another pose.

A world that is new every time has no map in its weights. What it has seen is in its keyframes: each holds
its picture, the pose it was taken from, and how far the wall is in each column. Walls are upright, floor and
ceiling level at two known heights, so that is enough to say what every pixel of a keyframe is a picture of,
and where it is seen from elsewhere. Looking from a pose means: where does each line of sight meet the walls
of each keyframe, which keyframe shows that point best, and what colour is it there?

Nothing here is learned; the depths and poses are the dream's own (`recollection.py`).

Axes: B dreams, T poses of each, K keyframes, C columns with a depth, R rows and L columns of lines of sight.
Lengths are in half extents, poses as in `place.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from world_model.field import centres

NEAR = 0.01
"""Nothing is seen nearer than this."""
NOTHING = 20.0
"""Depth of a wall that no keyframe shows."""
JOINED = 1.4
"""Neighbouring columns whose depths differ by more than this factor show different walls."""
CLOSE = 0.25
"""From further off it is not known well enough where a wall stands to run into it."""
BESIDE = 0.08
"""By which part of its depth a point may be off a wall and still be one of it."""
SLACK = (0.008, 0.06)
"""By how much, and by which part of it, a depth may be off before something counts as hidden."""
ASIDE = 0.5
"""What it costs a keyframe to be taken from elsewhere, per angle; a factor of e in size costs 1."""
ASTRAY = 2e-4
"""Half extents by which each tick makes it less certain where a keyframe was taken, seen from now."""
IMAGINED = 3.0
"""What it costs a keyframe that a dream painted it itself: as much as being seen 20 times too small."""
FAINT = 0.01
"""What the word of such a one counts about where walls are."""
HIDDEN = -1e4


class Views(NamedTuple):
    """Keyframes to look at: image uint8 (B, K, 3, H, W); pose (B, K, 3); wall (B, K, C), the depth of the
    wall in each column; held (B, T, K), or (B, 1, K) for all of the T poses that are looked from; small
    (B, K, 3, h, w) the pictures as `shrunk` makes them, where somebody keeps them; age (B, K) in ticks, for
    dreams whose reckoning goes astray with time; imagined (B, K), whether a dream painted them, where there
    are such."""

    image: Tensor
    pose: Tensor
    wall: Tensor
    held: Tensor
    small: Tensor | None = None
    age: Tensor | None = None
    imagined: Tensor | None = None

    def to(self, device: torch.device | str) -> Views:
        return Views(*(None if part is None else part.to(device) for part in self))  # type: ignore[arg-type]


class Lens(NamedTuple):
    """How pictures are taken: tangent of half the horizontal field of view, and floor and ceiling over the
    eye."""

    spread: Tensor
    heights: tuple[float, float]


class Sighting(NamedTuple):
    """What lines of sight find, all (B, T, R, L): which keyframe shows it best, at (..., 2) where in it in
    [-1, 1] x [-1, 1], known, quality (0 is best), depth, whether it is a wall, and away, its depth in that
    keyframe."""

    which: Tensor
    at: Tensor
    known: Tensor
    quality: Tensor
    depth: Tensor
    wall: Tensor
    away: Tensor


def into_view(xy: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
    """Points (..., 2) of the plan -> how far ahead of, and how far to the right of, a pose (..., 3)."""
    cos, sin = pose[..., 2].cos(), pose[..., 2].sin()
    dx, dy = xy[..., 0] - pose[..., 0], xy[..., 1] - pose[..., 1]
    return dx * cos + dy * sin, dx * sin - dy * cos


def onto_plan(ahead: Tensor, right: Tensor, pose: Tensor) -> Tensor:
    """The inverse of `into_view`: (..., 2)."""
    cos, sin = pose[..., 2].cos(), pose[..., 2].sin()
    return torch.stack(
        (pose[..., 0] + ahead * cos + right * sin, pose[..., 1] + ahead * sin - right * cos), -1
    )


def turned_back(image: Tensor, turn_F: Tensor, lens: Lens, aspect: float) -> tuple[Tensor, Tensor]:
    """Pictures (F, C, h, w), in float, taken after a turn to the left by `turn_F` -> what of each was to be
    seen before it, as it was seen then, and where that is (F, 1, h, w), 1 or 0.

    aspect: height of the picture by its width.
    """
    h, w = image.shape[2:]
    right = centres(w, image.device) * lens.spread
    down = centres(h, image.device)[:, None] * aspect * lens.spread
    cos, sin = turn_F.cos()[:, None, None], turn_F.sin()[:, None, None]
    ahead = (cos - right * sin).clamp(min=NEAR).expand(-1, h, w)
    at = torch.stack(((sin + right * cos) / (lens.spread * ahead), down / (lens.spread * aspect * ahead)), -1)
    inside = (at.abs() <= 1).all(-1)[:, None].float()
    return F.grid_sample(image, at, padding_mode="border", align_corners=False) * inside, inside


def wall_points(views: Views, lens: Lens) -> Tensor:
    """Where the walls of keyframes stand: (B, K, C, 2)."""
    right = views.wall * centres(views.wall.shape[-1], views.wall.device) * lens.spread
    return onto_plan(views.wall, right, views.pose[:, :, None])


def joined(views: Views) -> Tensor:
    """(B, K, C - 1): whether neighbouring columns show the same wall."""
    one, other = views.wall[..., :-1], views.wall[..., 1:]
    return torch.maximum(one, other) < JOINED * torch.minimum(one, other)


class Walls(NamedTuple):
    """Some walls as lines on the plan: ends (B, N, 2) twice, and which count (B, N)."""

    start: Tensor
    end: Tensor
    shown: Tensor

    def nearest(self, xy_BM2: Tensor) -> Tensor:
        """The nearest point (B, M, 2) of any wall to each point; far away where there is none."""
        off, square = self._off(xy_BM2)
        square = F.pad(square.masked_fill(~self.shown[:, None], NOTHING), (0, 1), value=NOTHING)
        best = square.min(-1, keepdim=True)
        off = F.pad(off, (0, 0, 0, 1))
        found = off.gather(2, best.indices[..., None].expand(*best.indices.shape, 2))[:, :, 0]
        return xy_BM2 + torch.where(best.values < NOTHING, found, NOTHING)

    def within(self, xy_B2: Tensor, reach_B1: Tensor) -> Walls:
        """Those that are no farther from a point than `reach`."""
        _, square = self._off(xy_B2[:, None])
        near = self.shown & (square[:, 0] <= reach_B1.square())
        some = near.any(0).nonzero().flatten()
        return Walls(self.start[:, some], self.end[:, some], near[:, some])

    def _off(self, xy_BM2: Tensor) -> tuple[Tensor, Tensor]:
        """From each point to the nearest one of each wall (B, M, N, 2), and the square of that (B, M, N)."""
        asked, start = xy_BM2[:, :, None], self.start[:, None]
        along = self.end[:, None] - start
        part = ((asked - start) * along).sum(-1) / along.square().sum(-1).clamp(min=1e-9)
        off = start + part.clamp(0, 1)[..., None] * along - asked
        return off, off.square().sum(-1)


def walls_near(views: Views, lens: Lens, xy_B2: Tensor, reach_B1: Tensor) -> Walls:
    """The walls no farther from a point than `reach`, of all keyframes that are held at the first of the
    poses, but for those that are not there.

    Between two columns that show a near and a far wall a network tells depths between: a wall across an open
    door. Who sees further there than that wall is, knows better. But nobody knows better than the last of
    them, which is what the player sees: reckoned a little wrong, all others may have seen past it.
    """
    points = wall_points(views, lens)
    close = torch.minimum(views.wall[..., :-1], views.wall[..., 1:]) < CLOSE
    shown = joined(views) & close & views.held[:, 0, :, None]

    def some(which: slice) -> Walls:
        ends = points[:, which, :-1].flatten(1, 2), points[:, which, 1:].flatten(1, 2)
        return Walls(*ends, shown[:, which].flatten(1)).within(xy_B2, reach_B1)

    seen, walls = some(slice(-1, None)), some(slice(-1))
    if walls.shown.numel():
        doubt = doubted((walls.start + walls.end) / 2, views, lens)
        walls = walls._replace(shown=walls.shown & (doubt <= 0))
    return Walls(*(torch.cat(parts, 1) for parts in zip(walls, seen, strict=True)))


def doubted(xy_BN2: Tensor, views: Views, lens: Lens) -> Tensor:
    """(B, N): by how many more keyframes see past a wall at each point than see one there. One that was
    imagined hardly counts beside such as were seen."""
    ahead, right = into_view(xy_BN2[:, None], views.pose[:, :, None])
    across = right / (lens.spread * ahead.clamp(min=NEAR))
    count = views.wall.shape[-1]
    column = ((across + 1) * (count / 2)).long().clamp(0, count - 1)
    wall = views.wall.gather(2, column)
    asked = (ahead > NEAR) & (across.abs() < 1) & views.held[:, 0, :, None]
    past = asked & (ahead < wall / (1 + BESIDE))
    seen = asked & ~past & (ahead < wall * (1 + BESIDE))
    if views.imagined is None:
        return past.sum(1) - seen.sum(1)
    says = torch.where(views.imagined > 0, FAINT, 1.0)[..., None]
    return ((past.float() - seen.float()) * says).sum(1)


def wall_depths(views: Views, lens: Lens, pose_BT3: Tensor, columns: int) -> Tensor:
    """(B, T, K, L): at which depth each column of a picture taken from `pose` meets the walls that each
    keyframe shows; NOTHING where it meets none."""
    points = wall_points(views, lens)[:, None]
    ahead, right = (x[..., None] for x in into_view(points, pose_BT3[:, :, None, None]))
    slope = centres(columns, pose_BT3.device) * lens.spread
    # Left of the line of sight or right of it: a wall is met between two points that differ in that.
    side = right - slope * ahead
    first, second = side[..., :-1, :], side[..., 1:, :]
    walls = joined(views)[:, None] & views.held[..., None]
    met = (first * second <= 0) & walls[..., None]
    apart = first - second
    cross = ahead[..., 1:, :] * right[..., :-1, :] - ahead[..., :-1, :] * right[..., 1:, :]
    depth = cross / torch.where(apart == 0, 1.0, apart)
    return torch.where(met & (apart != 0) & (depth > NEAR), depth, NOTHING).amin(-2)


def look(views: Views, lens: Lens, pose_BT3: Tensor, rows: int, columns: int, aspect: float) -> Sighting:
    """What R x L lines of sight, spread evenly over a picture taken from each pose, find in the keyframes.

    aspect: height of the picture by its width.
    """
    depth, wall = _surfaces(wall_depths(views, lens, pose_BT3, columns), views.imagined, lens, rows, aspect)
    at, away, visible = _project(views, lens, pose_BT3, depth, aspect)
    quality = -_cost(views, pose_BT3, depth, away)
    quality = quality.masked_fill(~visible, HIDDEN)
    best = quality.max(2, keepdim=True)
    which = best.indices

    def chosen(x: Tensor) -> Tensor:
        return x.gather(2, which)[:, :, 0]

    at = at.gather(2, which[..., None].expand(*which.shape, 2))[:, :, 0]
    known = best.values[:, :, 0] > HIDDEN
    quality = best.values[:, :, 0].clamp(min=-4.0)
    return Sighting(which[:, :, 0], at, known, quality, chosen(depth), chosen(wall), chosen(away))


def finer(
    views: Views, lens: Lens, pose_BT3: Tensor, coarse: Sighting, times: int, aspect: float
) -> Sighting:
    """The same at `times` as many rows and columns, each in the keyframe that was best around it."""
    rows, columns = coarse.which.shape[2:]
    own = _own_walls(wall_depths(views, lens, pose_BT3, columns * times), views.imagined)
    # What is `depth` ahead of a pose is depth * ahead + moved ahead of a keyframe; and so to the right.
    across = centres(columns * times, own.device) * lens.spread
    taken = views.pose[:, None]
    turn = (pose_BT3[:, :, None, 2] - taken[..., 2])[..., None]
    ahead, right = turn.cos() + across * turn.sin(), across * turn.cos() - turn.sin()
    moved = (x[..., None].expand_as(own) for x in into_view(pose_BT3[:, :, None, :2], taken))

    def chosen(table_BTKL: Tensor) -> Tensor:
        """Of the keyframe that each line of sight looks at: (B, T, rows, 1, columns, times)."""
        index = coarse.which[..., None].expand(*coarse.which.shape, times)
        return table_BTKL.unflatten(3, (columns, times)).gather(2, index)[:, :, :, None]

    met, ahead, right, ahead_moved, right_moved = (chosen(x) for x in (own, ahead, right, *moved))
    down = (centres(rows * times, own.device) * aspect * lens.spread).view(rows, times, 1, 1)
    level = _level(down, lens)
    depth = torch.minimum(met, level)
    away = (depth * ahead + ahead_moved).clamp(min=NEAR)
    scale = lens.spread * away
    at = torch.stack(((depth * right + right_moved) / scale, down * depth / (scale * aspect)), -1)
    wall = (met < level).float().expand_as(depth)

    which, known, quality = (
        x[:, :, :, None, :, None].expand_as(depth) for x in (coarse.which, coarse.known, coarse.quality)
    )
    parts = which, at, known, quality, depth, wall, away
    return Sighting(*(x.flatten(4, 5).flatten(2, 3) for x in parts))


def made_up(views: Views, found: Sighting) -> Tensor:
    """Which lines of sight (F, 1, R, L) look at a keyframe that a dream painted itself, 1 or 0."""
    if views.imagined is None:
        return torch.zeros_like(found.depth).flatten(0, 1)[:, None]
    rows = torch.arange(len(found.which), device=found.which.device)[:, None, None, None]
    return (views.imagined[rows, found.which] > 0).float().flatten(0, 1)[:, None]


def colours(image: Tensor, found: Sighting) -> Tensor:
    """Pictures (B, K, 3, h, w) of the keyframes, of any size, read where `found` says, bilinearly:
    (B, T, 3, R, L) in [-1, 1], 0 where nothing is known."""
    k, h = image.shape[1], image.shape[3]
    # One picture under the other, so that one operator reads them all; nothing is read across their edges.
    sheet = image.transpose(1, 2).flatten(2, 3).float()
    inside = found.at[..., 1].clamp(1 / h - 1, 1 - 1 / h)
    at = torch.stack((found.at[..., 0], (inside + 2 * found.which + 1 - k) / k), -1)
    read = F.grid_sample(sheet, at.flatten(1, 2), padding_mode="border", align_corners=False)
    known = found.known[:, :, None].float()
    read = read.unflatten(2, found.which.shape[1:3]).transpose(1, 2) * known
    return read * (2 / 255) - known if image.dtype == torch.uint8 else read


def shrunk(image: Tensor, times: int) -> Tensor:
    """uint8 (B, K, 3, H, W) -> float in [-1, 1], each side divided by `times`."""
    small = F.avg_pool2d(image.flatten(0, 1).float(), times).mul_(2 / 255).sub_(1)
    return small.unflatten(0, image.shape[:2])


def retrieve(views: Views, pose_B3: Tensor, count: int, worth: Tensor) -> Tensor:
    """Positions (B, count) of the keyframes that together show most of what is seen from a pose, by what each
    is worth there.

    Greedy: each next one is that which adds most. Where fewer are held, some come twice.
    """
    # Where nothing of the view is known, the nearest are the ones to feel walls by.
    tie = 1e-3 / (1 + (views.pose[..., :2] - pose_B3[:, None, :2]).norm(dim=-1)) * views.held[:, 0]
    have = torch.zeros_like(worth[:, 0])
    rows = torch.arange(len(worth), device=worth.device)
    picks: list[Tensor] = []
    while len(picks) < count:
        gain = (worth - have[:, None]).relu().sum(-1) + tie
        pick = gain.argmax(1)
        have = torch.maximum(have, worth[rows, pick])
        tie = tie.scatter(1, pick[:, None], -1.0)
        picks.append(pick)
    found = torch.stack(picks, 1)
    return torch.where(views.held[:, 0].gather(1, found), found, found[:, :1])


def known_part(worth: Tensor) -> Tensor:
    """Which part of a view keyframes show, of whatever quality, by what each is worth (..., K, P): (...)."""
    return (worth > 0).any(-2).float().mean(-1)


def worth(views: Views, lens: Lens, pose_BT3: Tensor, aspect: float) -> Tensor:
    """How well each keyframe shows each of 4 x 16 parts of the view from each pose, 0 to 1: (B, T, K, 64)."""
    walls = wall_depths(views, lens, pose_BT3, 16)
    depth, _ = _surfaces(walls, views.imagined, lens, 4, aspect)
    _, away, visible = _project(views, lens, pose_BT3, depth, aspect)
    cost = _cost(views, pose_BT3, depth, away)
    return torch.where(visible, torch.exp(-cost), 0.0).flatten(3)


def _cost(views: Views, pose_BT3: Tensor, depth: Tensor, away: Tensor) -> Tensor:
    """How badly each keyframe shows what lies at `depth`, and `away` from itself: (B, T, K, R, L)."""
    off = ASIDE * (views.pose[:, None, :, :2] - pose_BT3[:, :, None, :2]).norm(dim=-1)
    if views.age is not None:
        off = off + ASTRAY * views.age[:, None]
    cost = (away.clamp(min=NEAR) / depth).log().abs() + off[..., None, None] / depth
    return cost if views.imagined is None else cost + IMAGINED * views.imagined[:, None, :, None, None]


def take(views: Views, positions_BR: Tensor) -> Views:
    """The keyframes at these positions."""
    rows = torch.arange(len(positions_BR), device=positions_BR.device)[:, None]
    held = views.held[rows, :, positions_BR].transpose(1, 2)
    return Views(
        views.image[rows, positions_BR], views.pose[rows, positions_BR], views.wall[rows, positions_BR], held
    )


def _surfaces(
    walls_BTKL: Tensor, imagined_BK: Tensor | None, lens: Lens, rows: int, aspect: float
) -> tuple[Tensor, Tensor]:
    """Depth of what is met, and whether it is a wall: (B, T, K, R, L)."""
    met = _own_walls(walls_BTKL, imagined_BK)[..., None, :]
    level = _level(centres(rows, met.device) * aspect * lens.spread, lens)[:, None]
    return torch.minimum(met, level), (met < level).float()


def _own_walls(walls_BTKL: Tensor, imagined_BK: Tensor | None = None) -> Tensor:
    """A keyframe's own walls count for it, unless another one knows of a nearer wall. Nothing that was
    imagined stands before what was seen."""
    nearest = walls_BTKL.amin(2, keepdim=True)
    if imagined_BK is not None:
        imagined = imagined_BK[:, None, :, None] > 0
        seen = walls_BTKL.masked_fill(imagined, NOTHING).amin(2, keepdim=True)
        nearest = torch.where(imagined, nearest, seen)
    return torch.where(walls_BTKL < nearest * (1 + SLACK[1]) + SLACK[0], walls_BTKL, nearest)


def _level(down: Tensor, lens: Lens) -> Tensor:
    """Depth at which lines of sight that fall by `down` meet floor or ceiling."""
    floor, ceiling = lens.heights
    return torch.where(down > 0, -floor, ceiling) / down.abs()


def _project(
    views: Views, lens: Lens, pose_BT3: Tensor, depth: Tensor, aspect: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Where points at `depth` (B, T, K, R, L) are in the keyframes: place in the picture (..., 2), depth
    there, visible."""
    rows, columns = depth.shape[-2:]
    across = centres(columns, depth.device) * lens.spread
    below = centres(rows, depth.device)[:, None] * aspect * lens.spread * depth
    xy = onto_plan(depth, depth * across, pose_BT3[:, :, None, None, None])
    away, right = into_view(xy, views.pose[:, None, :, None, None])
    scale = lens.spread * away.clamp(min=NEAR)
    at = torch.stack((right / scale, below / (scale * aspect)), -1)
    inside = (away > NEAR) & (at.abs() < 1).all(-1)
    count = views.wall.shape[-1]
    column = ((at[..., 0] + 1) * (count / 2) - 0.5).clamp(0, count - 1)
    low = column.floor().clamp(max=count - 2)
    flat = views.wall[:, None].expand(-1, depth.shape[1], -1, -1)
    index = low.long().flatten(3)
    before, after = flat.gather(3, index), flat.gather(3, index + 1)
    part = (column - low).flatten(3)
    wall = (before + part * (after - before)).view(column.shape)
    visible = inside & (away < wall * (1 + SLACK[1]) + SLACK[0]) & (depth < NOTHING)
    return at, away, visible & views.held[..., None, None]
