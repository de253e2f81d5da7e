"""Stages `sprites`, `behaviour` and `spotter`: how things look, what they do, how they are recognised.

None of the three looks at latents. What a look is nobody tells: crops of the pictures are grouped by
likeness, and each group becomes the paint of a board that is held to the pictures, over what the map paints
behind it.
Everything after it uses looks as that stage left them.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from world_model.cast import HEIGHT_UNIT, SPOTTED, Spots
from world_model.config import CastConfig
from world_model.data.dataset import LatentDataset
from world_model.data.tracks import CLEAR, SAME_DEPTH, Track, crop, track
from world_model.model import WorldModel
from world_model.precision import mixed_precision
from world_model.recall import into_view
from world_model.sprites import Sprites
from world_model.things import ANCHOR, Camera, Things, in_sight
from world_model.tokenizer import to_float, to_uint8
from world_model.training.pictures import save_rows

GATHERED = 600
"""Pictures of each kind from which its looks are learned, and how near it stands in them."""
NEAR = 0.1, 0.42
LARGE = (0.08, -0.02, 0.15)
"""A board that is larger than any thing: half its width, lower and upper edge."""
SEEN = 0.25
"""How often a texel has to be seen, compared with the one that is seen most often, to be one of its board."""
OUTSIDE = 0.5
"""What it costs to be opaque where the depth is another thing's."""
FLOOR = 0.024
"""Up to this height the floor seems as far away as what stands on it: depth is told of every fourth row."""
GROUPING = 25, 4
"""Rounds of k-means, and starts, of which the best counts."""
SPRITES = 48
LABELLED = 24
"""Rows and columns of a crop by which its look is told."""


class Crops(NamedTuple):
    """What is seen where boards stand: kind (K,), picture (K, 3, S, S) and what the map paints behind it, in
    [0, 1]; mask (K, S, S), where the depth is the thing's, and floor (K, S, S), where it could be the
    floor's; inside (K, S, S), in the picture; ahead (K,)."""

    kind: Tensor
    picture: Tensor
    behind: Tensor
    mask: Tensor
    floor: Tensor
    inside: Tensor
    ahead: Tensor


def all_tracks(data: LatentDataset, cast: CastConfig, camera: Camera, farthest: float = CLEAR) -> list[Track]:
    camera = camera.cpu()
    return [track(data, i, cast.names, cast.slots, camera, farthest) for i in range(len(data.episodes))]


class Recorded(NamedTuple):
    """Clips of things: kind, look, way (B, T + 1, N), of which look is -1 where nobody knows; at (B, T + 1,
    N, 3); child (B, T, N), the kind that comes out of a thing; birth (B, T, G); pose (B, T + 1, 3); act,
    phase (B, T)."""

    kind: Tensor
    look: Tensor
    way: Tensor
    at: Tensor
    child: Tensor
    birth: Tensor
    pose: Tensor
    act: Tensor
    phase: Tensor


class SpritesStage:
    """Trains the paint of looks."""

    name = "sprites"

    def __init__(self, world: WorldModel, data: LatentDataset, held_out: LatentDataset, device: str) -> None:
        self.device = torch.device(device)
        world.requires_grad_(False)
        assert world.cast is not None and world.config.cast is not None
        self._world, self._config, self._camera = world, world.config.cast, world.camera
        self.model: nn.Module = world.cast.sprites.requires_grad_(True)
        self._sprites = world.cast.sprites
        self._held_out = held_out
        fresh = not bool(self._sprites.paint.detach().any())
        tracks = all_tracks(data, self._config, self._camera)
        picks = gather(tracks, self._config.kinds, self._camera, GATHERED, np.random.default_rng(0))
        if fresh:
            self._fit_boards(data, picks, tracks)
        self._crops = self._cut(data, tracks, picks)
        if fresh:
            self._begin(self._crops)
        self._look: Tensor | None = None

    def batch(self, rng: np.random.Generator, done: float) -> Tensor:
        return torch.from_numpy(rng.integers(0, len(self._crops.kind), SPRITES))

    def loss(self, batch: Tensor, done: float) -> tuple[Tensor, dict[str, float]]:
        if self._look is None:
            self._look = tell_looks(self._sprites, self._crops)
        part = Crops(*(x[batch].to(self.device) for x in self._crops))
        chosen = self._look[batch].to(self.device)
        miss = composed(self._sprites, part, chosen) - part.picture
        weight = part.inside[:, None].float()
        error = ((miss.abs() + 2 * miss.square()) * weight).sum() / weight.sum() / 3
        opaque = torch.sigmoid(self._sprites.paint[chosen, 3:])
        other = weight * ~(part.mask | part.floor)[:, None]
        outside = (opaque * other).sum() / weight.sum()
        miss_square = (miss.square() * weight).sum().item() / weight.sum().item() / 3
        return error + OUTSIDE * outside, {"miss": miss_square}

    @torch.no_grad()
    def preview(self, path: Path) -> dict[str, float]:
        """All looks, and how well held-out things are painted with the look that fits them best."""
        paint = self._sprites.paint.detach().cpu()
        opaque = torch.sigmoid(paint[1:, 3:])
        ground = torch.tensor([1.0, -1.0, 1.0])[:, None, None]
        shown = to_uint8(paint[1:, :3].clamp(-1, 1) * opaque + ground * (1 - opaque))
        each = self._config.looks_each
        save_rows(path, [list(shown[i : i + each]) for i in range(0, len(shown), each)])
        tracks = all_tracks(self._held_out, self._config, self._camera)
        picks = gather(tracks, self._config.kinds, self._camera, 60, np.random.default_rng(0))
        crops = self._cut(self._held_out, tracks, picks)
        look = tell_looks(self._sprites, crops)
        weight = crops.mask[:, None].float()

        def decibels(x: Tensor) -> float:
            miss = ((x - crops.picture).square() * weight).sum() / weight.sum() / 3
            return -10 * float(miss.log10())

        return {"psnr": decibels(composed(self._sprites, crops, look)), "without": decibels(crops.behind)}

    def _fit_boards(self, data: LatentDataset, picks: NDArray[np.int64], tracks: list[Track]) -> None:
        """As large as what is seen of each kind."""
        self._sprites.board.copy_(self._sprites.board.new_tensor(LARGE).expand_as(self._sprites.board))
        large = self._cut(data, tracks, picks, paint=False)
        size = self._config.texels
        for kind in range(1, self._config.kinds + 1):
            mask, inside = (x[large.kind == kind].float() for x in (large.mask, large.inside))
            often = (mask * inside).sum(0) / inside.sum(0).clamp(min=1)
            often = often > SEEN * often.max()
            rows, columns = often.any(1).nonzero().flatten(), often.any(0).nonzero().flatten()
            if not len(rows):
                continue
            aside = max(abs(float(columns[0]) - size / 2), abs(float(columns[-1]) + 1 - size / 2)) + 1
            half, low, high = LARGE
            texel = (high - low) / size
            board = (
                half * aside / (size / 2),
                high - (float(rows[-1]) + 2) * texel - FLOOR,
                high - (float(rows[0]) - 1) * texel,
            )
            self._sprites.board[kind] = torch.tensor(board).clamp(-0.2, 0.2)

    def _cut(
        self, data: LatentDataset, tracks: list[Track], picks: NDArray[np.int64], paint: bool = True
    ) -> Crops:
        """The crops at (episode, tick, slot)."""
        parts: list[Crops] = []
        place = self._world.dynamics.place
        decoder = self._world.tokenizer.decoder
        assert place is not None and decoder.detail is not None
        order = np.lexsort((picks[:, 2], picks[:, 1], picks[:, 0]))
        moments = np.split(picks[order], np.flatnonzero(np.diff(picks[order, :2], axis=0).any(1)) + 1)
        board = self._sprites.board.cpu()
        for moment in moments:
            i, t = (int(n) for n in moment[0, :2])
            own, episode = tracks[i], data.episodes[i]
            frame = to_float(np.array(episode.frames[t])[None])[0]
            behind = torch.zeros_like(frame)
            pose = torch.from_numpy(own.pose[t])
            if paint:
                with torch.no_grad(), mixed_precision(self.device.type):
                    painted = decoder.detail.paint(place.map.detail(pose[None].to(self.device)).fine)
                behind = painted[0].float().cpu().clamp(-1, 1)
            depth = torch.from_numpy(data.depth(episode, t))
            size = self._config.texels
            parts.append(_crops(own, t, moment[:, 2], frame, behind, depth, board, self._camera, size))
        return Crops(*(torch.cat(x) for x in zip(*parts, strict=True)))

    def _begin(self, crops: Crops) -> None:
        """Looks begin as the means of groups of crops."""
        each = self._config.looks_each
        for kind in range(1, self._config.kinds + 1):
            own = Crops(*(x[crops.kind == kind] for x in crops))
            if not len(own.kind):
                continue
            group = grouped(own, each)
            for j in range(each):
                mine = (group == j)[:, None, None, None]
                if not bool(mine.any()):
                    continue
                # Near the floor nobody knows what is the thing's: it begins half opaque.
                weight = ((own.mask | own.floor) & own.inside)[:, None] * mine
                colour = (own.picture * weight).sum(0) / weight.sum(0).clamp(min=0.5)
                part = torch.where(own.floor, 0.5, own.mask.float())[:, None] * own.inside[:, None] * mine
                often = part.sum(0) / (own.inside[:, None] * mine).sum(0).clamp(min=0.5)
                paint = torch.cat((colour * 2 - 1, torch.logit(often.float().clamp(0.02, 0.98))))
                self._sprites.paint.data[1 + (kind - 1) * each + j] = paint.to(self.device)


def _crops(
    own: Track,
    tick: int,
    slots: NDArray[np.int64],
    frame: Tensor,
    behind: Tensor,
    depth: Tensor,
    board: Tensor,
    camera: Camera,
    texels: int,
) -> Crops:
    """What a picture (3, H, W) in [-1, 1], what is behind it and its depth (h, w) show where the things of
    some slots stand."""
    kind, at = torch.from_numpy(own.kind[tick, slots]), torch.from_numpy(own.at[tick, slots])
    pose = torch.from_numpy(own.pose[tick])
    how = (at, board[kind], pose, camera.cpu(), texels)
    seen, inside = crop(torch.cat((frame, behind)), *how, "bilinear")
    there, _ = crop(depth[None], *how, "nearest")
    ahead, _ = into_view(at[:, :2], pose)
    off = there[:, 0] - ahead[:, None, None]
    seen = (seen + 1) / 2
    floor = near_floor(at, board[kind], texels)
    mask, free = (off.abs() < SAME_DEPTH) & ~floor, inside & (off > -SAME_DEPTH)
    return Crops(kind, seen[:, :3], seen[:, 3:], mask, floor, free, ahead)


def near_floor(at_N3: Tensor, board_N3: Tensor, texels: int) -> Tensor:
    """Which texels of boards (N, S, S) are so near to the floor that depth does not tell them from it."""
    down = (torch.arange(texels) + 0.5) / texels
    z = at_N3[:, 2:] + board_N3[:, 2:3] + down * (board_N3[:, 1:2] - board_N3[:, 2:3])
    return (z < FLOOR)[:, :, None].expand(-1, -1, texels)


def gather(
    tracks: list[Track], kinds: int, camera: Camera, count: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Where things are clearly and nearly seen: (K, 3) episode, tick and slot, at most `count` of a kind."""
    found = []
    for i, own in enumerate(tracks):
        ahead, _ = into_view(torch.from_numpy(own.at[..., :2]), torch.from_numpy(own.pose)[:, None])
        near = (ahead > NEAR[0]) & (ahead < NEAR[1])
        t, n = np.nonzero((own.clear == 1) & near.numpy())
        found.append(np.stack((np.full_like(t, i), t, n, own.kind[t, n]), 1))
    every = np.concatenate(found)
    parts = []
    for kind in range(1, kinds + 1):
        mine = every[every[:, 3] == kind]
        parts.append(mine[rng.permutation(len(mine))[:count], :3])
    return np.concatenate(parts)


def grouped(crops: Crops, groups: int) -> Tensor:
    """K-means of crops by what is seen of the thing: a group (K,) for each."""
    inside = crops.inside[:, None].float()
    what = torch.cat((crops.picture * crops.mask[:, None], 0.7 * crops.mask[:, None]), 1) * inside
    small, known = F.avg_pool2d(what, 4).flatten(1), F.avg_pool2d(inside, 4).flatten(1).repeat(1, 4)
    generator = torch.Generator().manual_seed(0)
    best: tuple[float, Tensor] | None = None
    rounds, starts = GROUPING
    for _ in range(starts):
        centre = small[torch.randperm(len(small), generator=generator)[:groups]].clone()
        for _ in range(rounds):
            away = ((small[:, None] - centre[None]).square() * known[:, None]).sum(-1)
            away = away / known.sum(1, keepdim=True).clamp(min=1)
            group = away.argmin(1)
            for j in range(len(centre)):
                mine = group == j
                if bool(mine.any()):
                    centre[j] = (small[mine] * known[mine]).sum(0) / known[mine].sum(0).clamp(min=1e-3)
        error = float(away.min(1).values.mean())
        if best is None or error < best[0]:
            best = error, group
    assert best is not None
    return best[1]


def composed(sprites: Sprites, crops: Crops, look: Tensor) -> Tensor:
    """The crops as they are painted: a look (K,) over what is behind it, (K, 3, S, S) in [0, 1]."""
    paint = _sized(sprites.painted(look, crops.ahead), crops)
    return paint[:, :3] + (1 - paint[:, 3:]) * crops.behind


def _sized(paint: Tensor, crops: Crops) -> Tensor:
    """Paint with as many rows and columns as crops have."""
    size = crops.picture.shape[-1]
    return paint if paint.shape[-1] == size else F.adaptive_avg_pool2d(paint, size)


@torch.no_grad()
def tell_looks(sprites: Sprites, crops: Crops) -> Tensor:
    """The look (K,) of its kind that fits each crop best: by colour where it is opaque, and by outline."""
    each = sprites.config.looks_each
    error = []
    for j in range(each):
        look = 1 + (crops.kind - 1) * each + j
        paint = sprites.painted(look.to(sprites.paint.device), crops.ahead.to(sprites.paint.device)).cpu()
        paint = _sized(paint, crops)
        opaque = paint[:, 3:]
        miss = (paint[:, :3] - opaque * crops.picture).square().sum(1, keepdim=True)
        outline = (opaque - crops.mask[:, None].float()).square() * ~crops.floor[:, None]
        miss = miss + 0.5 * outline
        weight = crops.inside[:, None].float()
        error.append((miss * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3)).clamp(min=1))
    return 1 + (crops.kind - 1) * each + torch.stack(error, 1).argmin(1)


def cast_stage(
    name: str, world: WorldModel, data: LatentDataset, held_out: LatentDataset, device: str
) -> SpritesStage | BehaviourStage | SpotterStage:
    """One of the three by its name."""
    if name == "sprites":
        return SpritesStage(world, data, held_out, device)
    if name == "behaviour":
        return BehaviourStage(world, data, held_out, device)
    return SpotterStage(world, data, held_out, device)


def playing(world: WorldModel) -> nn.ModuleDict:
    """What the three stages train."""
    assert world.cast is not None, "this world has no cast"
    return nn.ModuleDict(
        {
            "sprites": world.cast.sprites,
            "behaviour": world.cast.behaviour,
            "spotter": world.cast.spotter,
        }
    )


def labelled(
    data: LatentDataset, index: int, own: Track, sprites: Sprites, camera: Camera
) -> NDArray[np.int64]:
    """The looks (T + 1, N) of an episode's things: 0 where there is nothing to be seen of one, -1 where
    nobody knows."""
    look = np.where(own.clear == 2, 0, -1)
    for t in np.flatnonzero((own.clear == 1).any(1)).tolist():
        one = own.moment(t)
        told = _labelled_at(data, index, t, one, sprites, camera)
        look[t] = np.where(told > 0, told, look[t])
    return look


WINDOW, CLIPS = 96, 24
"""Ticks and clips of a batch of behaviour."""
PARENT = 0.13
"""What appears nearer to something that was there before than this came out of it."""
JUMP = 0.12
"""No thing moves so far in a tick."""
NEARLY_NEVER, SOLID = 0.002, 0.05
"""Part of the time that the player is nearer to a thing than its kind lets one come, and how near that has to
be, in half extents, for a kind to be solid."""
GATE = 0.02
"""Gates are farther apart than this."""
WARM = 16
"""Ticks at the start of a clip by which the past is made up for, and nothing is asked."""


class BehaviourStage:
    """Trains what things do, by what the recordings say that they did."""

    name = "behaviour"

    def __init__(self, world: WorldModel, data: LatentDataset, held_out: LatentDataset, device: str) -> None:
        self.device = torch.device(device)
        world.requires_grad_(False)
        assert world.cast is not None and world.config.cast is not None and world.dynamics.place is not None
        self._world, self._config, self._camera = world, world.config.cast, world.camera
        self._behaviour = world.cast.behaviour
        self.model: nn.Module = self._behaviour.requires_grad_(True)
        self._walls = world.dynamics.place.map.surfaces.walls
        self._held_out = held_out
        tracks = all_tracks(data, self._config, self._camera)
        if not bool(self._behaviour.ways.any()):
            self._count(tracks)
        self._recorded = self._record(data, tracks)
        self._first_looks(self._recorded)

    def _count(self, tracks: list[Track]) -> None:
        """What is counted rather than learned: how things move, where they appear, what comes out of them."""
        ways, births, beside = [], [], []
        for own in tracks:
            for t, n, parent in _births(own):
                at = own.at[t, n]
                if parent is None:
                    births.append(at)
                else:
                    beside.append((own.kind[t, n], _toward(own.at[t - 1, parent], own.pose[t - 1], at)))
            moved = np.diff(own.at, axis=0)
            same = (own.kind[:-1] > 0) & (own.kind[1:] > 0) & (np.abs(moved).max(-1) < JUMP)
            moved = moved[same]
            ways.append(moved[np.abs(moved).max(1) > 1e-4])
        self._behaviour.ways[1:].copy_(_codebook(np.concatenate(ways), self._config.ways - 1))
        gates = _common(np.array(births, np.float32).reshape(-1, 3), self._config.gates)
        self._behaviour.gates.copy_(torch.from_numpy(gates))
        for kind in range(1, self._config.kinds + 1):
            off = [o for k, o in beside if k == kind]
            if off:
                self._behaviour.offset[kind] = torch.from_numpy(np.median(off, axis=0))
        for kind in range(1, self._config.kinds + 1):
            away = [
                np.linalg.norm(own.at[t, n, :2] - own.pose[t, :2], axis=1)
                for own in tracks
                for t, n in (np.nonzero(own.kind == kind),)
            ]
            near = float(np.quantile(np.concatenate(away), NEARLY_NEVER)) if sum(map(len, away)) else 0.0
            self._behaviour.solid[kind] = near if near > SOLID else 0.0
        each = self._config.looks_each
        kinds = torch.arange(self._config.looks) // each + 1
        self._behaviour.kind_of[1:] = kinds.float()

    def _first_looks(self, recorded: list[Recorded]) -> None:
        """The look that each kind has most often when it appears."""
        for kind in range(1, self._config.kinds + 1):
            seen = []
            for own in recorded:
                came = (own.kind[0, 1:] == kind) & (own.kind[0, :-1] == 0) & (own.look[0, 1:] > 0)
                seen.append(own.look[0, 1:][came])
            every = torch.cat(seen)
            if not len(every):
                every = torch.cat([r.look[0][(r.kind[0] == kind) & (r.look[0] > 0)] for r in recorded])
            if len(every):
                self._behaviour.first[kind] = float(every.mode().values)

    def _record(self, data: LatentDataset, tracks: list[Track]) -> list[Recorded]:
        assert self._world.cast is not None
        made = []
        for i, own in enumerate(tracks):
            look = labelled(data, i, own, self._world.cast.sprites, self._camera)
            way, child, birth = self._codes(own)
            episode = data.episodes[i]
            parts = (
                own.kind,
                look,
                way,
                own.at,
                child,
                birth,
                own.pose,
                np.asarray(episode.actions, np.int64),
                np.asarray(episode.phases, np.int64),
            )
            made.append(Recorded(*(torch.from_numpy(np.ascontiguousarray(x))[None] for x in parts)))
        return made

    def _codes(self, own: Track) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Way (T + 1, N) by which each came, child (T, N), birth (T, G)."""
        moved = torch.from_numpy(np.diff(own.at, axis=0)).flatten(0, 1)
        ways = self._behaviour.ways.cpu()
        near = torch.cdist(moved, ways).argmin(1).view(len(own.at) - 1, -1).numpy()
        same = (own.kind[:-1] > 0) & (own.kind[1:] > 0)
        way = np.zeros_like(own.kind)
        way[1:] = near * same
        child = np.zeros_like(own.kind[1:])
        gates = self._behaviour.gates.cpu().numpy()
        birth = np.zeros((len(child), len(gates)), np.int64)
        for t, n, parent in _births(own):
            if parent is not None:
                child[t - 1, parent] = own.kind[t, n]
                continue
            away = np.abs(gates - own.at[t, n]).max(1)
            if away.min() < GATE:
                birth[t - 1, away.argmin()] = own.kind[t, n]
        return way, child, birth

    def batch(self, rng: np.random.Generator, done: float) -> Recorded:
        return _clips(self._recorded, rng, CLIPS, WINDOW)

    def loss(self, batch: Recorded, done: float) -> tuple[Tensor, dict[str, float]]:
        batch = Recorded(*(x.to(self.device) for x in batch))
        told = self._told(batch)
        total = sum(told.values(), torch.zeros((), device=self.device))
        return total, {k: v.item() for k, v in told.items()}

    def _told(self, clip: Recorded) -> dict[str, Tensor]:
        """Losses in nats a thing (or gate) and tick."""
        behaviour, config = self._behaviour, self._config
        empty = behaviour.empty(len(clip.kind), self.device)
        hidden = empty.hidden
        sums: dict[str, list[Tensor]] = {k: [] for k in ("look", "way", "child", "birth")}
        counts: dict[str, list[Tensor]] = {k: [] for k in sums}
        unseen = config.looks + 1
        gone = clip.kind[:, 1:] == 0
        for t in range(clip.act.shape[1]):
            known = clip.look[:, t] >= 0
            things = Things(
                clip.kind[:, t], clip.look[:, t].clamp(min=0), clip.way[:, t], clip.at[:, t], hidden
            )
            seen = known & in_sight(things, clip.pose[:, t], self._camera, self._walls)
            odds = behaviour(things, seen, clip.pose[:, t], clip.act[:, t], clip.phase[:, t], self._walls)
            there = things.kind > 0
            hidden = torch.where(there[..., None], odds.hidden, 0.0)
            hidden = hidden * (~gone[:, t])[..., None]
            if t < WARM:
                continue
            after, kind = clip.look[:, t + 1], clip.kind[:, t + 1]
            log = odds.look.float().log_softmax(-1)
            exact = torch.where(gone[:, t], unseen, after.clamp(min=0))
            told = log.gather(-1, exact[..., None])[..., 0]
            # How it looks nobody knows, but of what kind it is: one of these looks, or nothing to be seen.
            of_kind = behaviour.kind_of[None, None].long() == kind[..., None]
            of_kind = torch.cat((of_kind, torch.zeros_like(of_kind[..., :1])), -1)
            of_kind[..., 0] = kind == things.kind
            vague = log.masked_fill(~of_kind, -1e4).logsumexp(-1)
            told = torch.where((after >= 0) | gone[:, t], told, vague)
            sums["look"].append(-(told * there).sum())
            stays = there & ~gone[:, t]
            way = F.cross_entropy(odds.way.flatten(0, 1), clip.way[:, t + 1].flatten(), reduction="none")
            sums["way"].append((way * stays.flatten()).sum())
            child = F.cross_entropy(odds.child.flatten(0, 1), clip.child[:, t].flatten(), reduction="none")
            sums["child"].append((child * there.flatten()).sum())
            sums["birth"].append(F.cross_entropy(odds.birth.flatten(0, 1), clip.birth[:, t].flatten()))
            for key, count in (("look", there), ("way", stays), ("child", there)):
                counts[key].append(count.sum())
        done = {
            k: torch.stack(sums[k]).sum() / torch.stack(counts[k]).sum().clamp(min=1)
            for k in ("look", "way", "child")
        }
        return {**done, "birth": torch.stack(sums["birth"]).mean()}

    @torch.no_grad()
    def preview(self, path: Path) -> dict[str, float]:
        """The same losses on held-out episodes."""
        recorded = self._record(self._held_out, all_tracks(self._held_out, self._config, self._camera))
        clip = _clips(recorded, np.random.default_rng(0), 64, WINDOW)
        return {k: float(v) for k, v in self._told(Recorded(*(x.to(self.device) for x in clip))).items()}


def _clips(recorded: list[Recorded], rng: np.random.Generator, count: int, ticks: int) -> Recorded:
    lengths = np.array([r.act.shape[1] for r in recorded])
    picks = rng.choice(len(lengths), count, p=lengths / lengths.sum())
    clips = []
    for i in picks:
        start = int(rng.integers(0, lengths[i] - ticks + 1)) if lengths[i] >= ticks else 0
        long, short = slice(start, start + ticks + 1), slice(start, start + ticks)
        own = recorded[int(i)]
        clips.append(
            Recorded(
                *(
                    x[:, short if name in ("child", "birth", "act", "phase") else long]
                    for name, x in own._asdict().items()
                )
            )
        )
    shortest = min(c.act.shape[1] for c in clips)
    return Recorded(
        *(
            torch.cat(
                [x[:, : shortest + (x.shape[1] > c.act.shape[1])] for c in clips for x in (getattr(c, name),)]
            )
            for name in Recorded._fields
        )
    )


def _births(own: Track) -> list[tuple[int, int, int | None]]:
    """Tick, slot and parent of everything that appears after the first frame."""
    came = (own.kind[1:] > 0) & (own.kind[:-1] == 0)
    found: list[tuple[int, int, int | None]] = []
    for t, n in zip(*np.nonzero(came), strict=True):
        before = own.kind[t] > 0
        away = np.linalg.norm(own.at[t, :, :2] - own.at[t + 1, n, :2], axis=1)
        away[~before] = np.inf
        parent = int(away.argmin())
        found.append((int(t) + 1, int(n), parent if away[parent] < PARENT else None))
    return found


def _toward(
    parent: NDArray[np.float32], pose: NDArray[np.float32], at: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Where something is, seen from its parent: toward the player, to the left of that, up."""
    toward = pose[:2] - parent[:2]
    toward = toward / max(float(np.linalg.norm(toward)), 1e-4)
    off = at[:2] - parent[:2]
    aside = off @ np.array([-toward[1], toward[0]])
    return np.array([off @ toward, aside, at[2] - parent[2]], np.float32)


def _codebook(moved: NDArray[np.float32], size: int) -> Tensor:
    """The commonest motions, and means of the rest."""
    rounded, counts = np.unique(np.round(moved, 3), axis=0, return_counts=True)
    order = np.argsort(-counts)[:4096]
    points, weight = torch.from_numpy(rounded[order]).float(), torch.from_numpy(counts[order]).float()
    centre = points[:size].clone()
    for _ in range(30):
        group = torch.cdist(points, centre).argmin(1)
        for j in range(len(centre)):
            mine = group == j
            if bool(mine.any()):
                centre[j] = (points[mine] * weight[mine, None]).sum(0) / weight[mine].sum()
    return F.pad(centre, (0, 0, 0, size - len(centre)))


def _common(places: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Where most appear, the commonest first; what is left over is far away."""
    gates = np.full((count, 3), 8.0, np.float32)
    for g in range(count):
        if len(places) < 3:
            break
        near = np.abs(places[:, None] - places[None]).max(-1) < GATE
        best = int(near.sum(1).argmax())
        if near[best].sum() < 3:
            break
        gates[g] = places[near[best]].mean(0)
        places = places[~near[best]]
    return gates


SEARCHED = 24
"""Pictures of a batch."""
FULL = 0.75
"""Part of them that shows something."""
SPOTTED_TO = 1.6
"""Depth up to which a spotter is asked: a monster there is as large as its cell."""


class Shown(NamedTuple):
    """Pictures uint8 (F, H, W, 3) and what their cells show, all (F, R, C): kind, look of its kind (-1 where
    nobody knows), aside, log depth, height."""

    pictures: NDArray[np.uint8]
    kind: Tensor
    look: Tensor
    aside: Tensor
    depth: Tensor
    height: Tensor


class SpotterStage:
    """Trains how things are recognised in a picture."""

    name = "spotter"

    def __init__(self, world: WorldModel, data: LatentDataset, held_out: LatentDataset, device: str) -> None:
        self.device = torch.device(device)
        world.requires_grad_(False)
        assert world.cast is not None and world.config.cast is not None
        self._world, self._config, self._camera = world, world.config.cast, world.camera
        self._spotter = world.cast.spotter
        self.model: nn.Module = self._spotter.requires_grad_(True)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._data, self._held_out = data, held_out
        self._tracks = all_tracks(data, self._config, self._camera, SPOTTED_TO)
        self._spotter.residents.copy_(torch.from_numpy(_residents(self._tracks, self._config.slots)))

    def batch(self, rng: np.random.Generator, done: float) -> Shown:
        tracks = self._tracks
        moments: list[tuple[int, int]] = []
        while len(moments) < SEARCHED:
            i = int(rng.integers(len(tracks)))
            t = int(rng.integers(len(tracks[i].kind)))
            if (tracks[i].clear[t] == 1).any() or rng.random() > FULL:
                moments.append((i, t))
        return self._shown(self._data, tracks, moments)

    def _shown(self, data: LatentDataset, tracks: list[Track], moments: list[tuple[int, int]]) -> Shown:
        assert self._world.cast is not None
        frames = np.stack([data.episodes[i].frames[t] for i, t in moments])
        rows, columns = frames.shape[1] // SPOTTED, frames.shape[2] // SPOTTED
        kind, look = (torch.zeros(len(moments), rows, columns, dtype=torch.long) for _ in range(2))
        aside, depth, height = (torch.zeros(len(moments), rows, columns) for _ in range(3))
        camera = self._camera.cpu()
        for f, (i, t) in enumerate(moments):
            own = tracks[i]
            slots = np.flatnonzero(own.clear[t] == 1)
            pose, at = torch.from_numpy(own.pose[t]), torch.from_numpy(own.at[t, slots])
            ahead, right = into_view(at[:, :2], pose)
            x = camera.column(right, ahead)
            y = camera.row(at[:, 2] + ANCHOR * (at[:, 2] < 0.01), ahead).clamp(max=camera.lowest)
            across = (x + 1) / 2 * columns
            looks = _labelled_at(data, i, t, own.moment(t), self._world.cast.sprites, self._camera)
            for k in ahead.argsort(descending=True).tolist():  # the nearest last: it hides the others
                c, r = int(across[k].clamp(0, columns - 1)), int(((y[k] + 1) / 2 * rows).clamp(0, rows - 1))
                kind[f, r, c] = int(own.kind[t, slots[k]])
                told = int(looks[slots[k]])
                look[f, r, c] = (told - 1) % self._config.looks_each if told > 0 else -1
                aside[f, r, c] = (across[k] - c - 0.5) * 2
                depth[f, r, c], height[f, r, c] = ahead[k].log(), at[k, 2]
        return Shown(frames, kind, look, aside, depth, height)

    def loss(self, batch: Shown, done: float) -> tuple[Tensor, dict[str, float]]:
        losses = self._miss(batch)
        total = sum(losses.values(), torch.zeros((), device=self.device))
        return total, {k: v.item() for k, v in losses.items()}

    def _miss(self, batch: Shown) -> dict[str, Tensor]:
        with mixed_precision(self.device.type):
            x = to_float(batch.pictures, self.device).contiguous(memory_format=torch.channels_last)
            spots: Spots = self._spotter(x)
        kind, look, *numbers = (t.to(self.device) for t in batch[1:])
        there = kind > 0
        count = there.sum().clamp(min=1)
        which = F.cross_entropy(spots.kind.flatten(0, 2), kind.flatten(), reduction="none").view(kind.shape)
        # Beside the cell in which a thing is, it may be told as well: whoever looks takes the surest.
        near = F.max_pool2d(there.float(), 3, 1, 1) > 0
        which = (which * torch.where(there, 2.0, torch.where(near, 0.3, 1.0))).sum() / count
        known = there & (look >= 0)
        how = F.cross_entropy(spots.look[known], look[known]) if bool(known.any()) else which * 0
        aside, depth, height = numbers
        off = ((spots.aside - aside).abs() * there).sum() / count
        far = ((spots.depth - depth).abs() * there).sum() / count
        high = ((spots.height - height).abs() * there).sum() / count / HEIGHT_UNIT
        return {"kind": which, "look": how, "aside": 0.5 * off, "depth": 3 * far, "height": high}

    @torch.no_grad()
    def preview(self, path: Path) -> dict[str, float]:
        """Of held-out things: found, wrongly found (both as parts of what there is), median error in half
        extents."""
        assert self._world.cast is not None
        tracks = all_tracks(self._held_out, self._config, self._camera, SPOTTED_TO)
        rng = np.random.default_rng(0)
        hits = wrong = there = 0
        errors: list[float] = []
        for _ in range(300):
            i = int(rng.integers(len(tracks)))
            t, own = int(rng.integers(len(tracks[i].kind))), tracks[i]
            real = np.flatnonzero(own.clear[t] == 1)
            x = to_float(np.array(self._held_out.episodes[i].frames[t])[None], self.device)
            with mixed_precision(self.device.type):
                spots = self._spotter(x)
            pose = torch.from_numpy(own.pose[t]).to(self.device)
            found = self._world.cast.found(Spots(*(s[0] for s in spots)), pose, self._camera)
            left = set(range(len(found.kind)))
            for n in real:
                at = torch.from_numpy(own.at[t, n, :2]).to(self.device)
                near = [
                    (float((found.at[m, :2] - at).norm()), m) for m in left if found.kind[m] == own.kind[t, n]
                ]
                distance, m = min(near, default=(9.0, -1))
                if distance < 0.1:
                    left.discard(m)
                    hits += 1
                    errors.append(distance)
            known = own.at[t, own.kind[t] > 0, :2]
            for m in left:  # what is farther off or half hidden is no mistake
                away = np.linalg.norm(known - found.at[m, :2].cpu().numpy(), axis=1)
                wrong += not bool((away < 0.15).any())
            there += len(real)
        return {
            "found": hits / max(1, there),
            "wrong": wrong / max(1, there),
            "off": float(np.median(errors)) if errors else 9.0,
        }


def _labelled_at(
    data: LatentDataset, index: int, tick: int, one: Track, sprites: Sprites, camera: Camera
) -> NDArray[np.int64]:
    """The looks (N,) of a moment's things, as `labelled` has them."""
    slots = np.flatnonzero(one.clear[0] == 1)
    look = np.full(one.kind.shape[1], -1, np.int64)
    if not len(slots):
        return look
    episode, board = data.episodes[index], sprites.board.cpu()
    frame = to_float(np.array(episode.frames[tick])[None])[0]
    depth = torch.from_numpy(data.depth(episode, tick))
    crops = _crops(one, 0, slots, frame, frame, depth, board, camera, LABELLED)
    look[slots] = tell_looks(sprites, crops).numpy()
    return look


@torch.no_grad()
def real_things(
    world: WorldModel, data: LatentDataset, index: int, tick: int, own: Track
) -> tuple[Things, Tensor]:
    """The things of a recorded moment, for painting alone, and the player's pose (1, 3)."""
    assert world.cast is not None
    one = own.moment(tick)
    look = torch.from_numpy(_labelled_at(data, index, tick, one, world.cast.sprites, world.camera))
    kind, at, clear = (torch.from_numpy(x[0]) for x in (one.kind, one.at, one.clear))
    device = world.cast.behaviour.first.device
    first = world.cast.behaviour.first.cpu().long()[kind]
    look = torch.where(clear == 2, 0, torch.where(look < 0, first, look))
    empty = world.cast.behaviour.empty(1, device)
    things = empty._replace(kind=kind[None].to(device), look=look[None].to(device), at=at[None].to(device))
    return things, torch.from_numpy(one.pose).to(device)


def _residents(tracks: list[Track], slots: int) -> NDArray[np.float32]:
    """Kind and place (N, 4) of what is there in the first frame of nearly every episode."""
    first = np.concatenate(
        [np.concatenate((own.kind[0, :, None], own.at[0]), 1)[own.kind[0] > 0] for own in tracks]
    )
    rounded, counts = np.unique(np.round(first, 3), axis=0, return_counts=True)
    always = rounded[counts > 0.8 * len(tracks)][:slots]
    return np.concatenate((always, np.zeros((slots - len(always), 4)))).astype(np.float32)
