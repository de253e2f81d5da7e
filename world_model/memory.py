"""Attention over the sliding window, and the bounded bank of keyframes.

Axes: B batch, N tokens of a frame, T ticks, W window, K keyframes, D width, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

APART = (0.05, 0.2)
"""Half extents, and radians, from which on a world that recalls holds another keyframe. So little, since what
was just seen is known best, from where it is seen now; what is too much of it leaves first."""


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """Multi-head attention (..., Q, D), (..., S, D) -> (..., Q, D), written out.

    At a few dozen tokens on a CPU this is far cheaper backward than the fused operator.
    """
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(-2, -3) for t in (q, k, v))
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias
    return (scores.float().softmax(-1).to(v.dtype) @ v).transpose(-2, -3).flatten(-2)


class WindowAttention(nn.Module):
    """Each token looks back at the same place in the last W frames, its own included.

    A learned bias for each distance in time takes the place of position embeddings.
    """

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.embed_age = nn.Parameter(torch.zeros(heads, window))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(sequences, T, D) -> the same shape."""
        ticks = x_BTD.shape[1]
        q, k, v = self.qkv(x_BTD).chunk(3, -1)
        now = torch.arange(ticks, device=x_BTD.device)
        age = now[:, None] - now
        allowed = (age >= 0) & (age < self.window)
        bias = self.embed_age[:, age.clamp(0, self.window - 1)].masked_fill(~allowed, float("-inf"))
        out: Tensor = self.out(attend(q, k, v, self.heads, bias))
        return out

    def step(self, x_BD: Tensor, cache: Tensor, filled: int) -> tuple[Tensor, Tensor]:
        """One tick. `cache` (B, W, 2 D) holds keys and values, newest last; `filled` of them are real."""
        q, k, v = self.qkv(x_BD).chunk(3, -1)
        cache = torch.cat((cache[:, 1:], torch.cat((k, v), -1)[:, None].to(cache.dtype)), 1)
        held = min(filled + 1, self.window)
        keys, values = cache[:, -held:].to(q.dtype).chunk(2, -1)
        bias = self.embed_age[:, :held].flip(-1)[:, None]
        return self.out(attend(q[:, None], keys, values, self.heads, bias)[:, 0]), cache


class KeyframeAttention(nn.Module):
    """Tokens of the present frame read retrieved keyframes, a null slot among them, behind a gate.

    Pose and age enter queries and keys alone: they say where to look, never what was seen there.
    """

    def __init__(self, dim: int, heads: int, latent_dim: int, tokens: int, pose_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim, bias=False)
        self.embed_patch = nn.Linear(4 * latent_dim, dim)
        self.embed_token = nn.Parameter(torch.randn(tokens, dim) * 0.02)
        self.kv = nn.Linear(dim, 2 * dim, bias=False)
        self.pose_q = nn.Linear(pose_dim, dim, bias=False)
        self.pose_k = nn.Linear(pose_dim, dim, bias=False)
        self.age_k = nn.Linear(1, dim, bias=False)
        self.null = nn.Parameter(torch.zeros(2, dim))
        self.out = nn.Linear(dim, dim, bias=False)
        self.gate = nn.Parameter(torch.zeros(1))

    def keys(self, frames_BKChw: Tensor, age_BK: Tensor, place_BKE: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, 1 + K * tokens, D) of the retrieved frames."""
        batch = frames_BKChw.shape[0]
        patches = F.pixel_unshuffle(frames_BKChw, 2).flatten(-2).transpose(-1, -2)
        content = self.embed_patch(patches) + self.embed_token
        k, v = self.kv(content).chunk(2, -1)
        age = torch.log1p(age_BK.clamp(min=0))[..., None] / 8
        k = k + (self.pose_k(place_BKE) + self.age_k(age))[:, :, None]
        null_k, null_v = (n.to(k.dtype).expand(batch, 1, -1) for n in self.null)
        return torch.cat((null_k, k.flatten(1, 2)), 1), torch.cat((null_v, v.flatten(1, 2)), 1)

    def forward(self, x_BQD: Tensor, place_BQE: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = self.out(attend(self.q(x_BQD) + self.pose_q(place_BQE), k, v, self.heads))
        return torch.tanh(self.gate) * out


@dataclass(frozen=True)
class KeyframeBank:
    """A bounded bank for each dream of a batch. Frames enter by novelty and leave by redundancy.

    frames (B, K, C, h, w), keys (B, K, E) unit vectors of what they look like, pose (B, K, 3),
    born (B, K) tick, uses (B, K), filled (B, K). The first frame of a dream is never evicted.
    In a world that recalls (`recall.py`) frames enter by where they were seen and leave where others were
    seen from nearby; walls (B, K, C) are the depths in them, images K pictures uint8 (B, 3, H, W), and
    imagined (B, K) those that the dream has painted itself.
    Everything is replaced, never changed in place, so a snapshot is a reference.
    """

    frames: Tensor
    keys: Tensor
    pose: Tensor
    born: Tensor
    uses: Tensor
    filled: Tensor
    walls: Tensor | None = None
    images: tuple[Tensor, ...] | None = None
    imagined: Tensor | None = None

    @staticmethod
    def empty(
        batch: int,
        size: int,
        latent: tuple[int, int, int],
        device: torch.device | str,
        picture: tuple[int, int] | None = None,
    ) -> KeyframeBank:
        """`picture`: rows and columns of the pictures that a world holds which recalls."""
        channels, rows, columns = latent
        walls, images, imagined = None, None, None
        if picture is not None:
            walls = torch.full((batch, size, 4 * columns), 1.0, device=device)
            # A tensor each: what is saved must not share memory.
            blank = (torch.zeros(batch, 3, *picture, dtype=torch.uint8, device=device) for _ in range(size))
            images = tuple(blank)
            imagined = torch.zeros(batch, size, dtype=torch.bool, device=device)
        return KeyframeBank(
            frames=torch.zeros(batch, size, channels, rows, columns, device=device),
            keys=torch.zeros(batch, size, channels * 20, device=device),
            pose=torch.zeros(batch, size, 3, device=device),
            born=torch.zeros(batch, size, dtype=torch.long, device=device),
            uses=torch.zeros(batch, size, dtype=torch.long, device=device),
            filled=torch.zeros(batch, size, dtype=torch.bool, device=device),
            walls=walls,
            images=images,
            imagined=imagined,
        )

    @property
    def size(self) -> int:
        return self.filled.shape[1]

    def retrieve(self, z_BChw: Tensor, count: int) -> Tensor:
        """Positions (B, count) of the held frames that look most like the present one."""
        likeness = (self.keys @ describe(z_BChw)[..., None])[..., 0].masked_fill(~self.filled, -2.0)
        return likeness.topk(count, dim=1).indices

    def used(self, positions_BR: Tensor) -> KeyframeBank:
        """Counts a use of the frames at these positions."""
        return replace(self, uses=self.uses.scatter_add(1, positions_BR, torch.ones_like(positions_BR)))

    def offer(self, z_BChw: Tensor, pose_B3: Tensor, tick: int, novelty: float = 0.2) -> KeyframeBank:
        """Takes in the frames that differ enough from all that are held."""
        key = describe(z_BChw)
        likeness = (self.keys @ key[..., None])[..., 0].masked_fill(~self.filled, -1.0)
        return self._take_in(likeness.max(1).values < 1 - novelty, z_BChw, key, pose_B3, tick)

    def wants(self, pose_B3: Tensor) -> Tensor:
        """(B,): whether nothing is held that was seen from near a pose, in a world that recalls."""
        return ~((apart(self.pose, pose_B3[:, None]) < 1) & self.filled).any(1)

    def keep(
        self,
        wanted: Tensor,
        z_BChw: Tensor,
        pose_B3: Tensor,
        tick: int,
        walls: Tensor,
        image: Tensor,
        imagined: bool = False,
    ) -> KeyframeBank:
        """Takes in the frames (B,) that are wanted, with depths (B, C) and picture uint8 (B, 3, H, W)."""
        assert self.walls is not None and self.images is not None and self.imagined is not None
        slot, at = self._slots(wanted)
        images = list(self.images)
        for k in slot[wanted].unique().tolist():
            mine = (wanted & (slot == k))[:, None, None, None]
            images[k] = torch.where(mine, image, images[k])
        taken = self._take_in(wanted, z_BChw, describe(z_BChw), pose_B3, tick)
        own = torch.full_like(at[0], imagined, dtype=torch.bool)
        return replace(
            taken,
            walls=self.walls.index_put(at, walls[wanted]),
            images=tuple(images),
            imagined=self.imagined.index_put(at, own),
        )

    def _slots(self, wanted: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The slot (B,) that a new frame takes, and the indices of those that are wanted."""
        slot = torch.where(self.filled.all(1), self._most_redundant(), self.filled.long().argmin(1))
        rows = torch.arange(len(slot), device=slot.device)[wanted]
        return slot, (rows, slot[wanted])

    def _take_in(
        self, wanted: Tensor, z_BChw: Tensor, key: Tensor, pose_B3: Tensor, tick: int
    ) -> KeyframeBank:
        if not bool(wanted.any()):
            return self
        _, at = self._slots(wanted)
        rows = at[0]
        return replace(
            self,
            frames=self.frames.index_put(at, z_BChw[wanted].to(self.frames.dtype)),
            keys=self.keys.index_put(at, key[wanted]),
            pose=self.pose.index_put(at, pose_B3[wanted]),
            born=self.born.index_put(at, torch.full_like(rows, tick)),
            uses=self.uses.index_put(at, torch.zeros_like(rows)),
            filled=self.filled.index_put(at, torch.ones_like(rows, dtype=torch.bool)),
        )

    def _most_redundant(self) -> Tensor:
        """The slot (B,) whose frame has the closest double among the others; never slot 0."""
        if self.walls is None:
            likeness = self.keys @ self.keys.transpose(1, 2)
        else:
            likeness = -apart(self.pose[:, :, None], self.pose[:, None])
        likeness = likeness - 1e3 * torch.eye(self.size, device=likeness.device)
        closest = likeness.max(2).values
        closest[:, 0] = -torch.inf
        if self.walls is not None:
            # The last one stays for as long as it is the last; of two that are alike the younger leaves.
            newest = self.born.masked_fill(~self.filled, -1).argmax(1, keepdim=True)
            closest = closest.scatter(1, newest, -torch.inf) + 1e-7 * self.born.argsort(1).argsort(1)
            if self.imagined is not None:  # what was made up is missed less than what was seen
                closest = closest + 1.0 * self.imagined
        return closest.argmax(1)


def apart(a: Tensor, b: Tensor) -> Tensor:
    """How far poses (..., 3) are apart: 1 is where another keyframe is worth holding."""
    turn = torch.atan2((a[..., 2] - b[..., 2]).sin(), (a[..., 2] - b[..., 2]).cos())
    away = (a[..., :2] - b[..., :2]).square().sum(-1) / APART[0] ** 2
    return (away + (turn / APART[1]).square()).sqrt()


def describe(z_BChw: Tensor) -> Tensor:
    """A unit vector (B, E) for what a latent (B, C, 10, 16) looks like: its mean over a 5 x 4 grid."""
    pooled = F.adaptive_avg_pool2d(z_BChw.float(), (5, 4)).flatten(1)
    return F.normalize(pooled - pooled.mean(1, keepdim=True), dim=1)
