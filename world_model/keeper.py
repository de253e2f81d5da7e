"""The keyframes of a world that recalls, between its dreams and what is remembered of them.

Which moments are held, which of them are looked at, and as what. Holds no dream itself: banks go in and come
out, and what it keeps of their pictures can be made again at any time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from world_model.memory import KeyframeBank, apart
from world_model.recall import IMAGINED, Views, known_part, retrieve, shrunk, worth
from world_model.recollection import COARSE_STEP, Glimpse, Recollection, nothing_held

KNOWN = 0.5
"""Part of a view from which on the dream's own picture of it is not held."""

MISSED = 0.9
"""Part of a view below which what is missing of it is made up, in a world that does so."""
POOR = 1.2
"""What it may cost to see what was made up (`recall.worth`), beyond that it was, before it is made up again
from nearer by: as much as being seen three times too small."""

Pictures = Callable[[], NDArray[np.uint8]]
"""Gives pictures (B, H, W, 3); painted only if it is called."""


class Keeper:
    """`recalled` keyframes are looked at in a tick."""

    def __init__(self, recollection: Recollection, recalled: int) -> None:
        self._recollection, self._recalled = recollection, recalled
        self._small = WeakIdKeyDictionary()
        self._worth, self._views, self._glimpse = Latest(), Latest(), Latest()

    def offer(
        self,
        bank: KeyframeBank,
        z_BChw: Tensor,
        pose_B3: Tensor,
        tick: int,
        picture: Pictures,
        imagined: bool = False,
    ) -> KeyframeBank:
        """The bank after it was offered a moment; its picture is asked for where it is wanted.

        One that is `imagined` is wanted only where little is known: a copy of what is held, held again and
        copied again, wears off within seconds.
        """
        wanted = bank.wants(pose_B3)
        if imagined and bool(wanted.any()):
            wanted = wanted & (known_part(self.worth(bank, pose_B3)) < KNOWN)
        return self.hold(bank, wanted, z_BChw, pose_B3, tick, picture, imagined)

    def hold(
        self,
        bank: KeyframeBank,
        wanted: Tensor,
        z_BChw: Tensor,
        pose_B3: Tensor,
        tick: int,
        picture: Pictures,
        imagined: bool = False,
    ) -> KeyframeBank:
        """The bank with the moment of the dreams (B,) that want it."""
        if not bool(wanted.any()):
            return bank
        image = torch.from_numpy(picture()).to(z_BChw.device).permute(0, 3, 1, 2).contiguous()
        walls = self._recollection.survey(image)
        return bank.keep(wanted, z_BChw, pose_B3, tick, walls, image, imagined)

    def misses(self, bank: KeyframeBank, pose_BT3: Tensor) -> tuple[Tensor, Tensor]:
        """Of which poses (B, T) dreams do not know enough of the view, and made nothing up there yet; and how
        well each keyframe shows it, as `tell` wants it."""
        assert bank.imagined is not None
        shown = self._shown(bank, pose_BT3)
        imagined = (bank.imagined & bank.filled)[:, None]
        poor = (shown < math.exp(-POOR - IMAGINED)) & imagined[..., None]
        made_up = (apart(bank.pose[:, None], pose_BT3[:, :, None]) < 1) & imagined
        return ~made_up.any(2) & (known_part(shown.masked_fill(poor, 0.0)) < MISSED), shown

    def tell(self, bank: KeyframeBank, pose_B3: Tensor, shown_BKP: Tensor) -> Tensor:
        """What keyframes tell of the view from a pose where the dream is not yet: see `Glimpse`."""
        found = self._best(bank, pose_B3, shown_BKP)
        return self._recollection.glimpse(self._look_up(bank, found), pose_B3).told

    def retrieve(self, bank: KeyframeBank, pose_B3: Tensor) -> Tensor:
        """Positions (B, R) of the keyframes to look at from a pose."""
        return self._best(bank, pose_B3, self.worth(bank, pose_B3))

    def _best(self, bank: KeyframeBank, pose_B3: Tensor, shown: Tensor) -> Tensor:
        return retrieve(self.blank(bank), pose_B3, min(self._recalled, bank.size), shown)

    def worth(self, bank: KeyframeBank, pose_B3: Tensor) -> Tensor:
        """How well each keyframe shows each part of the view from a pose, see `recall.worth`."""
        made: Tensor = self._worth.get(
            (bank.walls, pose_B3), lambda: self._shown(bank, pose_B3[:, None])[:, 0]
        )
        return made

    def _shown(self, bank: KeyframeBank, pose_BT3: Tensor) -> Tensor:
        return worth(self.blank(bank), self._recollection.lens, pose_BT3, self._recollection.aspect)

    def glimpse(self, views: Views, pose_F3: Tensor) -> Glimpse:
        """A coarse look; the trunk and the decoder of a tick are given the same one."""
        seen: Glimpse = self._glimpse.get(
            (views, pose_F3), lambda: self._recollection.glimpse(views, pose_F3)
        )
        return seen

    def blank(self, bank: KeyframeBank) -> Views:
        """All keyframes without their pictures."""
        assert bank.walls is not None
        blank = bank.walls.new_zeros(*bank.filled.shape, 0)
        held = bank.filled[:, None]
        return Views(blank, bank.pose, bank.walls, held, age=_age(bank), imagined=bank.imagined)

    def views(self, bank: KeyframeBank, positions_BR: Tensor) -> Views:
        """The keyframes at these positions, to look at; without positions, such as hold nothing."""
        what = (bank.walls, bank.images, positions_BR)
        views: Views = self._views.get(what, lambda: self._look_up(bank, positions_BR))
        return views

    def _look_up(self, bank: KeyframeBank, positions_BR: Tensor) -> Views:
        assert bank.walls is not None and bank.images is not None and bank.imagined is not None
        batch, count = positions_BR.shape
        device = positions_BR.device
        if not count:
            size = bank.images[0].shape[2:]
            return nothing_held(batch, 1, self._recollection.columns, (size[0], size[1]), device)
        rows = torch.arange(batch, device=device)[:, None]
        parts = (bank.pose, bank.walls, bank.filled, _age(bank), bank.imagined)
        pose, walls, held, age, imagined = (x[rows, positions_BR] for x in parts)
        places = [[(bank.images[k], b) for k in row] for b, row in enumerate(positions_BR.tolist())]
        image = torch.stack([torch.stack([picture[b] for picture, b in row]) for row in places])
        small = torch.stack([torch.stack([self.small(picture)[b] for picture, b in row]) for row in places])
        return Views(image, pose, walls, held[:, None], small, age, imagined=imagined)

    def small(self, image_B3HW: Tensor) -> Tensor:
        """A picture of a bank as the coarse look reads it, made once for as long as the picture is held."""
        if image_B3HW not in self._small:
            self._small[image_B3HW] = shrunk(image_B3HW[:, None], COARSE_STEP)[:, 0]
        small: Tensor = self._small[image_B3HW]
        return small


class Latest:
    """What was made last, and of what: asked again for the same, by identity, it is not made again."""

    def __init__(self) -> None:
        self._of: tuple[object, ...] = ()
        self._made: object = None

    def get(self, of: tuple[object, ...], make: Callable[[], object]) -> Any:
        if len(of) != len(self._of) or any(a is not b for a, b in zip(of, self._of, strict=True)):
            self._of, self._made = of, make()
        return self._made


def _age(bank: KeyframeBank) -> Tensor:
    """Ticks (B, K) by which each keyframe is older than the newest."""
    born = bank.born.masked_fill(~bank.filled, 0)
    return (born.amax(1, keepdim=True) - born).float()
