"""The real game as a dreamer: the upper bound of every figure, and the check of the protocols themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from world_model.data.sources import Observation, Source, make_source
from world_model.evaluation.metrics import change
from world_model.evaluation.protocol import Clip, Images, Ints
from world_model.types import DataError, Image, SourceError

SAME_LEVELS = 1.0
"""Mean absolute difference of the luma, of 255, up to which a replayed frame is the recorded one."""


class SourceDreamer:
    """Plays the game itself from where a clip stands: one game for each clip of a batch.

    It starts from clips that know their seed and the actions since (`Clip.seed`, `Clip.history`), plays
    them again and makes sure that it arrives at the recorded frame. Raises SourceError when the source
    is not installed or does not reproduce the recording, DataError for a clip without a seed.
    """

    def __init__(self, source: str, make: Callable[[], Source] | None = None) -> None:
        self.name = f"source {source}"
        self._make = make or (lambda: make_source(source))
        self._games: list[Source] = []
        self._shown: list[Image] = []

    def reset(self, obs: NDArray[np.uint8], act: Ints, phase: Ints) -> Images:
        """Pictures alone do not tell where a game stands: raises DataError."""
        raise DataError(f"{self.name} starts from recorded clips with a seed, not from pictures")

    def reset_clips(self, clips: Sequence[Clip]) -> Images:
        """Plays each clip's episode up to its last context frame; (B, H, W, 3)."""
        while len(self._games) < len(clips):
            self._games.append(self._make())
        self._shown = [self._replay(game, clip) for game, clip in zip(self._games, clips, strict=False)]
        return np.stack(self._shown)

    def step(self, act: Ints) -> Images:
        """A tick of every game."""
        pairs = zip(self._games, act, strict=False)
        self._shown = [self._living(game.step(int(action))) for game, action in pairs]
        return np.stack(self._shown)

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
            image = self._living(game.step(int(action)))
        if image.shape != clip.real(0).shape or change(image, clip.real(0)) > SAME_LEVELS:
            raise SourceError(
                f"{self.name} does not arrive at the recorded frame of {clip.episode}; collect the episodes "
                "again with the version that is installed"
            )
        return image

    def _living(self, obs: Observation) -> Image:
        if obs.terminated:
            raise SourceError(f"{self.name}: the game ended during a protocol; use shorter ones")
        return obs.image
