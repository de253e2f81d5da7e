"""The real game as a dreamer: the upper bound of every figure, and the check of the protocols themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from world_model.data.sources import Source, make_source
from world_model.evaluation.metrics import change
from world_model.evaluation.protocol import Clip, Images, Ints
from world_model.evaluation.walks import EndedError
from world_model.types import DataError, Image, SourceError

SAME_LEVELS = 1.0
"""Mean absolute difference of the luma, of 255, up to which a replayed frame is the recorded one."""


class SourceDreamer:
    """Plays the game itself from where a clip stands: one game for each clip of a batch.

    It starts from clips that know their seed and the actions since (`Clip.seed`, `Clip.history`), plays
    them again and makes sure that it arrives at the recorded frame. Raises SourceError when the source
    is not installed or does not reproduce the recording, DataError for a clip without a seed, EndedError
    for a tick after the game has ended, as by the player's death: it has nothing to show there.
    """

    def __init__(self, source: str, make: Callable[[], Source] | None = None) -> None:
        self.name = f"source {source}"
        self._make = make or (lambda: make_source(source))
        self._games: list[Source] = []
        self._shown: list[Image] = []
        self._heard: list[NDArray[np.int16] | None] = []
        self._over = False

    def reset(self, obs: NDArray[np.uint8], act: Ints, phase: Ints) -> Images:
        """Pictures alone do not tell where a game stands: raises DataError."""
        raise DataError(f"{self.name} starts from recorded clips with a seed, not from pictures")

    def reset_clips(self, clips: Sequence[Clip]) -> Images:
        """Plays each clip's episode up to its last context frame; (B, H, W, 3)."""
        while len(self._games) < len(clips):
            self._games.append(self._make())
        self._heard, self._over = [], False
        self._shown = [self._replay(game, clip) for game, clip in zip(self._games, clips, strict=False)]
        return np.stack(self._shown)

    def step(self, act: Ints) -> Images:
        """A tick of every game."""
        if self._over:
            raise EndedError(f"{self.name}: the game ended before the protocol did, as by the player's death")
        seen = [game.step(int(action)) for game, action in zip(self._games, act, strict=False)]
        self._over = any(o.terminated for o in seen)
        self._shown, self._heard = [o.image for o in seen], [o.sound for o in seen]
        return np.stack(self._shown)

    @property
    def heard(self) -> NDArray[np.int16] | None:
        """The sound of the present tick (B, samples, channels); None in a game without, or before a tick."""
        sounds = [s for s in self._heard if s is not None]
        return np.stack(sounds) if sounds and len(sounds) == len(self._heard) else None

    def close(self) -> None:
        """Ends all games."""
        for game in self._games:
            game.close()
        self._games = []

    def _replay(self, game: Source, clip: Clip) -> Image:
        if clip.seed is None or clip.history is None:
            raise DataError(f"{clip.episode} has no seed, so {self.name} cannot be played from there")
        image = game.reset(clip.seed).image
        for action in (*clip.history, *clip.actions[: clip.context - 1]):
            seen = game.step(int(action))
            image, self._over = seen.image, self._over or seen.terminated
        if image.shape != clip.real(0).shape or change(image, clip.real(0)) > SAME_LEVELS:
            raise SourceError(
                f"{self.name} does not arrive at the recorded frame of {clip.episode}; collect the episodes "
                "again with the version that is installed"
            )
        return image
