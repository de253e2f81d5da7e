"""Puts a settled pose, and things that were found, right by the pixels of a real picture.

Latents are too coarse to tell a map unit from the next, and from two units beside it a wall is painted some
pixels off for as long as the dream lasts. The map's paint is as fine as the picture. Its error is rugged, so
it is not followed downhill: poses are drawn around the best ones so far, each round nearer (the cross-entropy
method).

Axes: B dreams, F poses, H W rows and columns of pictures, all of these in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from world_model.place import compose
from world_model.recall import into_view, onto_plan
from world_model.sprites import Sprites
from world_model.things import Camera, Things, Walls, in_sight

COARSE = 2
"""So many pixels to a side are compared as one."""
ROUNDS, DRAWS, ELITE = 4, 24, 6
"""Rounds, poses of each, and the best of them, around which the next are drawn."""
SPREAD = (0.006, 0.006, 0.02)
"""Standard deviation of the first round: half extents ahead and aside, radians."""
LEAST = (2e-4, 2e-4, 5e-4)
"""And what each later one has at least."""
WIDER = 1.6
"""By how much wider than the elite the next poses are drawn, or all would be near where they began."""


def focused(
    paint: Callable[[Tensor], Tensor], picture_B3HW: Tensor, pose_B3: Tensor, generator: torch.Generator
) -> Tensor:
    """The poses (B, 3) near the given ones from which `paint`, poses (F, 3) -> (F, 3, H, W), is most like the
    pictures, of which rows at the bottom may be missing."""
    found = [
        _focused(paint, picture, pose, generator)
        for picture, pose in zip(picture_B3HW.split(1), pose_B3.split(1), strict=True)
    ]
    return torch.cat(found)


def _focused(
    paint: Callable[[Tensor], Tensor], picture: Tensor, pose: Tensor, generator: torch.Generator
) -> Tensor:
    mean = torch.zeros(3)
    factor, least = torch.diag(torch.tensor(SPREAD)), torch.diag(torch.tensor(LEAST).square())
    weight = (torch.arange(ELITE, 0, -1.0) / sum(range(1, ELITE + 1)))[:, None]
    target = F.avg_pool2d(picture.float(), COARSE)
    for _ in range(ROUNDS):
        drawn = mean + torch.randn(DRAWS, 3, generator=generator) @ factor.T
        drawn[0] = mean
        painted = paint(compose(pose.expand(DRAWS, 3), drawn.to(pose)))[..., : picture.shape[2], :]
        miss = (F.avg_pool2d(painted.float(), COARSE) - target).abs().mean((1, 2, 3)).cpu()
        best = drawn[miss.topk(ELITE, largest=False).indices]
        mean = (weight * best).sum(0)
        off = best - mean
        factor = torch.linalg.cholesky(off.T @ (weight * off) * WIDER**2 + least)
    return compose(pose, mean.to(pose)[None])


FITTED, REACH = 6, 0.9
"""At most so many things are fitted, the nearest, up to this depth."""
NEARER = (0.74, 0.86, 1.0, 1.16, 1.35)
"""By which a thing may be nearer or farther off than it was found."""
ASIDE = (-1.0, -0.5, 0.0, 0.5, 1.0)
"""And by which it may be beside that: parts of half its width."""
FINER = 0.4
"""How much nearer to each other places are that are tried once more around the best."""


def fitted(
    sprites: Sprites,
    things: Things,
    picture_B3HW: Tensor,
    behind_B3HW: Tensor,
    pose_B3: Tensor,
    camera: Camera,
    walls: Walls,
    fixed_N: Tensor,
) -> Things:
    """The things where, and as, they make of what is `behind` them most of the picture; both may lack rows at
    the bottom of the whole one. Things in `fixed` slots stay as they are."""
    shown = in_sight(things, pose_B3, camera, walls) & (things.look > 0) & ~fixed_N
    parts = [part.clone() for part in things]
    for b in range(len(pose_B3)):
        one = Things(*(part[b : b + 1] for part in parts))
        ahead, _ = into_view(one.at[..., :2], pose_B3[b : b + 1, None])
        slots = (shown[b] & (ahead[0] < REACH)).nonzero().flatten()
        for n in slots[ahead[0, slots].argsort()][:FITTED].tolist():
            pose, pictures = pose_B3[b : b + 1], (picture_B3HW[b : b + 1], behind_B3HW[b : b + 1])
            look, at = _fitted(sprites, one, n, pictures, pose, camera, walls)
            parts[1][b, n], parts[3][b, n, :2] = look, at
    return Things(*parts)


def _fitted(
    sprites: Sprites,
    things: Things,
    slot: int,
    pictures: tuple[Tensor, Tensor],
    pose: Tensor,
    camera: Camera,
    walls: Walls,
) -> tuple[Tensor, Tensor]:
    """Look and place (2,) of one thing, the others being where they are."""
    target, canvas = (F.avg_pool2d(picture, COARSE) for picture in pictures)
    rows, columns = target.shape[2:]
    whole = round(columns * camera.aspect), columns

    def seen(some: Things) -> Tensor:
        return sprites(some, pose.expand(len(some.kind), -1), camera, walls, whole)[:, :, :rows]

    ahead, _ = into_view(things.at[..., :2], pose)
    own_ahead = ahead[:, slot : slot + 1]
    farther, nearer = (
        seen(things._replace(kind=things.kind.masked_fill(~some, 0)))
        for some in (ahead > own_ahead, ahead < own_ahead)
    )
    canvas = _laid(farther, canvas)
    own = Things(*(part[:, slot : slot + 1] for part in things))

    def best(look: Tensor, at: Tensor) -> int:
        some = Things(*(part.expand(len(at), *part.shape[1:]) for part in own))
        where = torch.cat((at, own.at[0, :, 2:].expand(len(at), 1)), 1)
        some = some._replace(look=look[:, None], at=where[:, None])
        return int((_laid(nearer, _laid(seen(some), canvas)) - target).abs().mean((1, 2, 3)).argmin())

    at, each = own.at[0, :, :2], sprites.config.looks_each
    look = 1 + (own.kind[0] - 1) * each + torch.arange(each, device=pose.device)
    half = sprites.board[own.kind[0, 0], 0]
    for scale in (1.0, FINER):
        far, right = into_view(at, pose)
        factor, aside = torch.cartesian_prod(torch.tensor(NEARER), torch.tensor(ASIDE)).to(pose).unbind(1)
        # Along the line of sight it stays where it is on the picture.
        tried = onto_plan(far * factor**scale, right * factor**scale + aside * scale * half, pose)
        looks, places = look.repeat(len(tried)), tried.repeat_interleave(len(look), 0)
        chosen = best(looks, places)
        look, at = looks[chosen : chosen + 1], places[chosen : chosen + 1]
    return look[0], at[0]


def _laid(seen: Tensor, over: Tensor) -> Tensor:
    """Pictures with what is seen of things before them; see `Sprites.forward`."""
    return over * (1 - seen[:, 3:]) + 2 * seen[:, :3] - seen[:, 3:]
