"""A moment of a dream: what `World.snapshot` gives, and what can be seen of it. As bytes: state_file.py."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from world_model.audio import SoundState
from world_model.dynamics import TrunkState
from world_model.gauges import Readings
from world_model.imagination import Vision
from world_model.memory import KeyframeBank
from world_model.place import Place
from world_model.things import Things
from world_model.types import Image


@dataclass(frozen=True)
class DreamState:
    """Everything a dream carries. Never changed in place, so holding on to it is a snapshot.

    z (B, C, h, w) the present latent; place; trunk; bank; phase (B,); attended (B, R) bank positions
    read in this tick; tick, ticks since the first context frame; seed of the noise.
    """

    z: Tensor
    place: Place
    trunk: TrunkState
    bank: KeyframeBank
    phase: Tensor
    attended: Tensor
    tick: int
    seed: int
    sound: SoundState | None = None
    """Of a world with sound."""
    things: Things | None = None
    """Of a world with a cast."""
    readings: Readings | None = None
    """Of a world with gauges."""
    vision: Vision | None = None
    """Of a world that makes up what it has not seen."""

    def tensors(self) -> list[Tensor]:
        """All tensors, for hashing and measuring."""
        layers = [t for layer in self.trunk.layers for t in (*layer.mamba, layer.window) if t is not None]
        bank = [
            self.bank.frames,
            self.bank.keys,
            self.bank.pose,
            self.bank.born,
            self.bank.uses,
            self.bank.filled,
        ]
        if self.bank.walls is not None and self.bank.images is not None and self.bank.imagined is not None:
            bank += [self.bank.walls, *self.bank.images, self.bank.imagined]
        return [
            self.z,
            *self.place,
            *layers,
            *bank,
            self.phase,
            *(self.sound or ()),
            *(self.things or ()),
            *(self.readings or ()),
            *(self.vision or ()),
        ]


class Picture:
    """The picture of a latent, painted when it is first asked for. The same latent gives the same bytes."""

    def __init__(self, paint: Callable[[], Image], before: Image, painted: bool = False) -> None:
        """`before` is what the screen shows until then; with `painted` it is the picture already."""
        self._paint, self._image, self._painted = paint, before, painted

    @property
    def shown(self) -> Image:
        """The picture if it was painted, else the one that was painted last before it."""
        return self._image

    @property
    def nbytes(self) -> int:
        """Bytes of the picture, painted or not: it may be at any moment."""
        return self._image.nbytes

    def get(self) -> Image:
        """The picture itself."""
        if not self._painted:
            self._image, self._painted = self._paint(), True
        return self._image

    def copy(self) -> Image:
        """The picture for a caller to own."""
        return self.get().copy()


@dataclass(frozen=True)
class WorldState:
    """A moment of a dream. Independent of later steps; belongs to the weights that made it."""

    dream: DreamState
    picture: Picture
    thumbnails: dict[int, Image]
    guard_events: int
    weights_sha256: str

    @property
    def image(self) -> Image:
        """uint8 (H, W, 3); painted now if it was not."""
        return self.picture.get()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors and pictures, the own picture included even where it is not painted.

        Pictures of keyframes are shared by all moments that hold them: two count as this one's.
        """
        pictures = self.picture.nbytes + sum(t.nbytes for t in self.thumbnails.values())
        held = self.dream.bank.images or ()
        shared = sum(image.nbytes for image in held[2:])
        return pictures + sum(t.nbytes for t in self.dream.tensors()) - shared

    def hash(self) -> str:
        """SHA-256 over every tensor: equal states have equal hashes, whether their pictures were painted
        or not. The picture follows from them.
        """
        digest = hashlib.sha256(f"{self.dream.tick} {self.dream.seed} {self.dream.trunk.filled}".encode())
        for tensor in self.dream.tensors():
            digest.update(tensor_bytes(tensor))
        return digest.hexdigest()


@dataclass(frozen=True)
class Keyframe:
    """thumbnail uint8 (h, w, 3), age in ticks, uses: how often a tick read it."""

    thumbnail: Image
    age: int
    uses: int


@dataclass(frozen=True)
class Memory:
    """What the dream holds: `window` of `size` last frames, and the keyframes of its bank."""

    window: int
    size: int
    keyframes: tuple[Keyframe, ...]


def tensor_bytes(tensor: Tensor) -> bytes:
    """The values in order, whatever their place in memory."""
    return tensor.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes()
