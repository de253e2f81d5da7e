"""Playback by pygame's mixer, where there is no miniaudio. Uses pygame."""

from __future__ import annotations

import threading

import pygame

from game.sound import CHANNELS, Pull, SpeakerError

CHUNK_SECONDS = 0.02
LOOKS = 4
"""Looks at the mixer in the time of a chunk: it tells nobody when it wants more."""


class MixerDevice:
    """Keeps one chunk playing and the next one waiting, from a thread of its own. Raises SpeakerError."""

    def __init__(self, pull: Pull, rate: int) -> None:
        try:
            pygame.mixer.init(rate, -16, CHANNELS, buffer=512, allowedchanges=0)
            self._channel = pygame.mixer.Channel(0)
        except (pygame.error, NotImplementedError) as err:
            raise SpeakerError(f"no device for pygame's mixer ({err})") from err
        self._pull, self._chunk = pull, int(rate * CHUNK_SECONDS)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sound", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(1.0)
        pygame.mixer.quit()

    def _run(self) -> None:
        while not self._stop.wait(CHUNK_SECONDS / LOOKS):
            try:
                self._feed()
            except pygame.error:  # the device went away; that nobody pulls any more is noticed elsewhere
                return

    def _feed(self) -> None:
        if self._channel.get_queue() is None:
            sound = pygame.mixer.Sound(buffer=self._pull(self._chunk).tobytes())
            # Into an idle channel this begins at once.
            self._channel.queue(sound)
