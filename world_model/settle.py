"""Makes sure of a place: looks for the pose from which the map shows what was seen.

A filter over sights (`place.py`) is a few paces off, and a picture painted from there is a sharp picture of
the wrong wall. The `Aligner` is shown a real latent beside what the map shows from a pose near it, and tells
the motion that lies between. Latents are not smooth in the pose, so no gradient would find it from further
than some map units; a small network does from a room's width. `settle` follows many guesses at once along
the context, since walls look alike, and keeps the one whose pictures fit best.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from world_model.atlas import Atlas
from world_model.field import ROOM
from world_model.place import SIGHT_CORRELATION, Place, PlaceModel, compose, motion_between, wrap

FROM = 2
"""Frame whose pose is guessed. At the first the momentum from before the context is not yet known."""
SCATTER, DRAWS = 0.06, 16
"""Spread (half extents; twice that in radians) and number of the guesses around what the sights say."""
ATLAS_GUESSES, ATLAS_LOOKS = 64, 8
"""And of the guesses that the atlas makes by so many frames."""
APART = 0.03
"""Guesses closer than this are one."""
HEATS = ((96, 5), (32, 6), (16, 1000))
"""So many guesses are followed for so many ticks; those whose pictures fitted best go on."""
DOUBT = (0.05, 0.05, 0.1)
"""Standard deviation of a guess."""
SWAY = (0.01, 0.01, 0.01)
"""And by how much a motion model errs in a tick: by more than it would by itself, for somebody may be in the
way."""
END_LOOKS = (0, 1, 2, 3, 4, 6)
"""Frames before the last by which the end pose alone is sharpened."""
END_ROUNDS = 4
ROUND_SCATTER, ROUND_DRAWS = 0.1, 48
"""Before that the end is looked for once more around where the walk led: spread, and number of guesses."""
ROUND_LOOKS, ROUND_ROUNDS, ROUND_KEPT = (0, 3, 6), 2, 8
"""The frames before the last by which that is done, how often, and how many of these guesses go on."""
UNIT = (0.03, 0.03, 0.06)
"""What an aligner's output of one means: half extents, and radians."""
SIGHTS = 32
"""Frames whose sight makes a guess: all of a usual context, and no more of a long one, or no room is left for
the other guesses."""
SETTLED = 1e-5
"""Variance of a settled pose."""


class Settled(NamedTuple):
    """Where a context ended, place (B), and the way there: track (B, T, 3), poses of its last T frames."""

    place: Place
    track: Tensor


class Alignment(NamedTuple):
    """motion (..., 3) in the player's frame from where the map was read to where the picture was taken, and
    its log variance (..., 3)."""

    motion: Tensor
    log_variance: Tensor


class Aligner(nn.Module):
    """A real latent and the map's own from a pose near it, both (F, C, h, w) -> `Alignment`."""

    def __init__(self, latent_dim: int, grid: tuple[int, int], dim: int = 32) -> None:
        super().__init__()
        cells = grid[0] * grid[1] // 4
        self.layers = nn.Sequential(
            nn.Conv2d(2 * latent_dim, dim, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(dim, dim, 3, padding=1),
            nn.SiLU(),
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * dim, 48, 1),
            nn.SiLU(),
            nn.Conv2d(48, 24, 3, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(24 * cells, 32),
            nn.SiLU(),
            nn.Linear(32, 6),
        )

    def forward(self, z_FChw: Tensor, seen_FChw: Tensor) -> Alignment:
        x = torch.cat((seen_FChw - z_FChw, z_FChw), 1).to(self.layers[0].weight.dtype)  # type: ignore[arg-type]
        out = self.layers(x.contiguous(memory_format=torch.channels_last)).float()
        return Alignment(out[:, :3] * out.new_tensor(UNIT), out[:, [3, 3, 5]].clamp(-14, 2))


def fuse(place: Place, told: Alignment) -> Place:
    """A place put right by an alignment, as far as each is to be trusted (a Kalman filter)."""
    unit = told.motion.new_tensor(UNIT)
    noise = told.log_variance.exp() * unit.square() * SIGHT_CORRELATION
    # An alignment far outside of what both allow has compared unlike places.
    outlier = (told.motion.square() / (place.variance + noise) / 9).clamp(min=1)
    gain = place.variance / (place.variance + noise * outlier)
    pose = compose(place.pose, gain * told.motion)
    return place._replace(pose=pose, variance=(1 - gain) * place.variance)


def settle(
    model: PlaceModel,
    aligner: Aligner,
    atlas: Atlas,
    path: list[Place],
    z_BTChw: Tensor,
    act: Tensor,
    phase: Tensor,
    generator: torch.Generator,
) -> Settled:
    """The place at the end of a context, made sure of by all of it.

    path: the places at the T frames; act, phase (B, T - 1). Guesses at the pose of an early frame are what
    each frame's sight says about it, draws around them, and where the atlas holds all of the walk possible.
    Each walks on from there by the motion model, walls included, and is put right by an alignment a tick.
    """
    first = min(FROM, z_BTChw.shape[1] - 1)
    guesses = _apart(_guesses(model, atlas, path, z_BTChw, first, generator), HEATS[0][0])
    hunt = Hunt.begin(path[first], guesses)
    track: list[Tensor] = []
    end = z_BTChw.shape[1]
    for heat, (count, ticks) in enumerate(HEATS):
        if heat:
            kept = _best(hunt.place.pose, hunt.misfit, count)
            hunt, track = hunt.keep(kept), [_pick(pose, kept) for pose in track]
        for t in range(first, min(end, first + ticks)):
            if track:
                hunt = hunt.walk(model, act[:, t - 1], phase[:, t - 1])
            hunt = hunt.look(model, aligner, z_BTChw[:, t])
            track.append(hunt.place.pose)
        first = min(end, first + ticks)
    kept = _best(hunt.place.pose, hunt.misfit, 1)
    place = hunt.keep(kept).place
    track_BT3 = torch.stack([_pick(pose, kept)[:, 0] for pose in track], 1)
    pose = _look_round(model, aligner, track_BT3, z_BTChw[:, -track_BT3.shape[1] :], generator)
    walked = motion_between(track_BT3[:, -1:].expand_as(track_BT3), track_BT3)
    track_BT3 = compose(pose[:, None].expand_as(track_BT3), walked)
    variance = torch.full_like(path[-1].variance, SETTLED)
    found = path[-1]._replace(pose=pose, motion=place.motion[:, 0], variance=variance)
    return Settled(found, track_BT3)


class Hunt(NamedTuple):
    """Guesses that are followed: places (B, K), the variance (B, K, 3) of their poses, and the sum (B, K) of
    how badly they fitted in so many looks."""

    place: Place
    variance: Tensor
    misfit: Tensor

    @staticmethod
    def begin(place: Place, pose_BK3: Tensor) -> Hunt:
        """Each at its pose, with motion and history of one `place` (B)."""
        count = pose_BK3.shape[1]
        each = [x[:, None].expand(-1, count, *x.shape[1:]) for x in place]
        variance = pose_BK3.new_tensor(DOUBT).square().expand_as(pose_BK3)
        return Hunt(Place(*each)._replace(pose=pose_BK3), variance, pose_BK3.new_zeros(pose_BK3.shape[:2]))

    def walk(self, model: PlaceModel, act_B: Tensor, phase_B: Tensor) -> Hunt:
        """A tick later."""
        shape = self.misfit.shape
        place = model.move(self.place, act_B[:, None].expand(shape), phase_B[:, None].expand(shape))
        return self._replace(place=place, variance=self.variance + self.variance.new_tensor(SWAY).square())

    def look(self, model: PlaceModel, aligner: Aligner, z_BChw: Tensor) -> Hunt:
        """Put right by the present frame, and judged by how well it fitted before."""
        pose = self.place.pose
        shape = pose.shape[:2]
        seen = model.map.seen(pose.flatten(0, 1))[:, : z_BChw.shape[1]].float()
        target = z_BChw[:, None].expand(-1, shape[1], -1, -1, -1).flatten(0, 1)
        motion, log_variance = (x.unflatten(0, shape) for x in aligner(target, seen))
        doubt = log_variance.exp() * log_variance.new_tensor(UNIT).square()
        # Along the axes of the map a variance in the player's frame is what it is on average.
        flat = doubt[..., :2].mean(-1, keepdim=True)
        doubt = torch.cat((flat, flat, doubt[..., 2:]), -1)
        gain = self.variance / (self.variance + doubt)
        said = compose(pose, motion)
        change = torch.cat((said[..., :2] - pose[..., :2], motion[..., 2:]), -1)
        misfit = (seen - target).square().mean((1, 2, 3)).unflatten(0, shape)
        misfit = misfit + (model.map.surfaces.walls(pose[..., :2]) < ROOM)
        return self._replace(
            place=self.place._replace(pose=pose + gain * change),
            variance=(1 - gain) * self.variance,
            misfit=self.misfit + misfit,
        )

    def keep(self, kept_BK: Tensor) -> Hunt:
        """Some of the guesses (B, K)."""
        place = Place(*(_pick(x, kept_BK) for x in self.place))
        return Hunt(place, _pick(self.variance, kept_BK), _pick(self.misfit, kept_BK))


def sharpen(
    model: PlaceModel,
    aligner: Aligner,
    track_BT3: Tensor,
    z_BTChw: Tensor,
    back: tuple[int, ...] = END_LOOKS,
    rounds: int = END_ROUNDS,
) -> Tensor:
    """The end of a track (B, 3), moved with the track's last stretch to where the map shows that best."""
    return _surest(*_sharpened(model, aligner, track_BT3[:, -1:], track_BT3, z_BTChw, back, rounds))


def _look_round(
    model: PlaceModel, aligner: Aligner, track_BT3: Tensor, z_BTChw: Tensor, generator: torch.Generator
) -> Tensor:
    """The same, but for ends that are farther off as well."""
    end = track_BT3[:, -1:]
    draws = torch.randn(len(end), ROUND_DRAWS, 3, generator=generator).to(end.device)
    unit = ROUND_SCATTER * draws.new_tensor([1.0, 1.0, 2.0])
    ends = torch.cat((end, compose(end.expand_as(draws), draws * unit)), 1)
    tried = _sharpened(model, aligner, ends, track_BT3, z_BTChw, ROUND_LOOKS, ROUND_ROUNDS)
    ends = _pick(tried[0], _best(*tried, ROUND_KEPT))
    return _surest(*_sharpened(model, aligner, ends, track_BT3, z_BTChw, END_LOOKS, END_ROUNDS))


def _surest(pose_BK3: Tensor, error_BK: Tensor) -> Tensor:
    return _pick(pose_BK3, error_BK.argmin(1, keepdim=True))[:, 0]


def _sharpened(
    model: PlaceModel,
    aligner: Aligner,
    ends_BK3: Tensor,
    track_BT3: Tensor,
    z_BTChw: Tensor,
    back: tuple[int, ...],
    rounds: int,
) -> tuple[Tensor, Tensor]:
    """Ends of a track, and where they are moved to round by round, all of them, with their errors (B, K')."""
    ticks = track_BT3.shape[1]
    at = sorted({max(0, ticks - 1 - ago) for ago in back})
    offsets = motion_between(track_BT3[:, -1:].expand(-1, len(at), -1), track_BT3[:, at])
    tried = []
    for _ in range(rounds + 1):
        poses = compose(ends_BK3[:, :, None], offsets[:, None])
        moved, error = _align(model, aligner, ends_BK3, poses, z_BTChw[:, at])
        tried.append((ends_BK3, error))
        ends_BK3 = moved
    ends, errors = (torch.cat(part, 1) for part in zip(*tried, strict=True))
    return ends, errors


def _align(
    model: PlaceModel, aligner: Aligner, anchor_BK3: Tensor, at_BKT3: Tensor, target_BTChw: Tensor
) -> tuple[Tensor, Tensor]:
    """Where the alignments at poses (B, K, T, 3) on the way of anchors (B, K, 3) put the anchors, and the
    mean squared error (B, K) of what the map shows from there now, one more where nobody can stand."""
    shape = at_BKT3.shape[:3]
    channels = target_BTChw.shape[2]
    seen = model.map.seen(at_BKT3.flatten(0, 2))[:, :channels].float()
    target = target_BTChw[:, None].expand(-1, shape[1], -1, -1, -1, -1).flatten(0, 2)
    motion, log_variance = (x.unflatten(0, shape) for x in aligner(target, seen))
    back = motion_between(at_BKT3, anchor_BK3[:, :, None].expand_as(at_BKT3))
    said = compose(compose(at_BKT3, motion), back)
    change = said - anchor_BK3[:, :, None]
    change = torch.cat((change[..., :2], wrap(change[..., 2:])), -1)
    weight = (-log_variance).exp()
    moved = anchor_BK3 + (change * weight).sum(2) / weight.sum(2)
    error = (seen - target).square().mean((1, 2, 3)).unflatten(0, shape).mean(2)
    outside = model.map.surfaces.walls(anchor_BK3[..., :2]) < ROOM
    return moved, error + outside


def _guesses(
    model: PlaceModel,
    atlas: Atlas,
    path: list[Place],
    z_BTChw: Tensor,
    first: int,
    generator: torch.Generator,
) -> Tensor:
    """What filter, sights and atlas say about the pose at frame `first`, and draws around it: (B, K, 3)."""
    walked = [torch.zeros_like(path[0].pose)]
    for after in path[1:]:
        walked.append(compose(walked[-1], after.motion))
    sighted = [
        compose(model.localizer(z_BTChw[:, t]).pose, motion_between(walked[t], walked[first]))
        for t in _spread(z_BTChw.shape[1], SIGHTS)
    ]
    said = torch.stack((path[first].pose, *sighted), 1)
    device, count = said.device, said.shape[1]
    picks = torch.randint(0, count, (DRAWS,), generator=generator).to(device)
    draws = torch.randn(len(said), DRAWS, 3, generator=generator).to(device)
    unit = SCATTER * torch.tensor([1.0, 1.0, 2.0], device=device)
    looks = [first + t for t in _spread(z_BTChw.shape[1] - first, ATLAS_LOOKS)]
    track = torch.stack([walked[t] for t in looks], 1)
    shown = atlas.find(z_BTChw[:, looks], track, 0, ATLAS_GUESSES)
    return torch.cat((said, said[:, picks] + draws * unit, shown), 1)


def _pick(x_BN: Tensor, kept_BK: Tensor) -> Tensor:
    """x[b, kept[b]], for x (B, N, ...)."""
    return x_BN[torch.arange(len(x_BN), device=x_BN.device)[:, None], kept_BK]


def _best(pose_BN3: Tensor, misfit_BN: Tensor, count: int) -> Tensor:
    """Indices (B, K) of the best `count` poses that are not the same as a better one, best first."""
    order = misfit_BN.argsort(1)
    return order.gather(1, _distinct(_pick(pose_BN3, order), count))


def _apart(pose_BN3: Tensor, count: int) -> Tensor:
    """The first `count` poses, those last that are the same as one before them."""
    return _pick(pose_BN3, _distinct(pose_BN3, count))


def _distinct(pose_BN3: Tensor, count: int) -> Tensor:
    near = _distance(pose_BN3[:, :, None], pose_BN3[:, None]) < APART
    doubled = (near & torch.ones_like(near[0]).tril(-1)).any(2)
    # A stable sort puts doubles last and keeps the order within the rest.
    return doubled.int().argsort(dim=1, stable=True)[:, :count]


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """How far poses are apart, half a radian counting as a quarter of the half extent."""
    away = (a[..., :2] - b[..., :2]).square().sum(-1)
    return (away + (0.5 * wrap(a[..., 2] - b[..., 2])).square()).sqrt()


def _spread(ticks: int, count: int) -> list[int]:
    """`count` of the ticks 0 .. ticks - 1, evenly, both ends among them."""
    return sorted({round(i * (ticks - 1) / max(1, count - 1)) for i in range(count)})
