"""Video files by PyAV (extra `video`): live while playing, or rendered from a recording.

A live film is a fragmented MP4 with a key frame every second, so that what was written before a crash
plays. Encoding happens in a thread of its own; when it cannot follow, pictures are left out, never ticks.
"""

from __future__ import annotations

import threading
from fractions import Fraction
from pathlib import Path
from queue import Full, Queue
from typing import Any

import numpy as np

from world_model.types import FPS, DataError, Frame, Image, ReverieError

QUEUE = 2 * FPS
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}


def _av() -> Any:
    try:
        import av
    except ImportError as err:
        raise ReverieError("video needs PyAV: pip install 'reverie[video]'") from err
    return av


class VideoWriter:
    """An H.264 MP4, or an animated GIF, of pictures at 25 a second. Raises DataError where the disk refuses.

    Pictures of another size than (width, height) are scaled by whole pixels or smoothly, with their aspect.
    """

    def __init__(self, path: Path, width: int, height: int, live: bool = False) -> None:
        self._av, self.path = _av(), path
        self._size = (width - width % 2, height - height % 2)  # H.264 halves the colour planes
        self._gif = path.suffix == ".gif"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._container = self._av.open(str(path), "w", options=FRAGMENTED if live else {})
            self._stream = self._container.add_stream("gif" if self._gif else "libx264", rate=FPS)
        except (OSError, ValueError, self._av.error.FFmpegError) as err:
            raise DataError(f"{path}: the video cannot be written ({err})") from err
        self._stream.width, self._stream.height = self._size
        self._stream.pix_fmt = "rgb8" if self._gif else "yuv420p"
        self._stream.time_base = Fraction(1, FPS)
        if not self._gif:
            self._stream.gop_size = FPS
            preset = "ultrafast" if live else "medium"
            tune = {"tune": "zerolatency"} if live else {}
            self._stream.options = {"preset": preset, "crf": "18", "threads": "1", **tune}

    def write(self, image: Image, tick: int) -> None:
        """One picture, shown from `tick` on."""
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame = frame.reformat(*self._size, format=self._stream.pix_fmt, interpolation="BICUBIC")
        frame.pts, frame.time_base = tick, Fraction(1, FPS)
        self._mux(frame)

    def close(self) -> None:
        """Writes what is still held back, and the end of the file."""
        try:
            self._mux(None)
            self._container.close()
        except (OSError, self._av.error.FFmpegError) as err:
            raise DataError(f"{self.path}: the video could not be finished ({err})") from err

    def _mux(self, frame: Any) -> None:
        try:
            for packet in self._stream.encode(frame):
                self._container.mux(packet)
        except (OSError, self._av.error.FFmpegError) as err:
            raise DataError(f"{self.path}: the video has stopped ({err})") from err


class LiveFilm:
    """Films what is shown, tick by tick, beside the game. `error` says why it stopped by itself."""

    def __init__(self, path: Path, width: int, height: int) -> None:
        self.path, self.error = path, None  # type: Path, str | None
        self._writer = VideoWriter(path, width, height, live=True)
        self._queue: Queue[tuple[Image, int] | None] = Queue(QUEUE)
        self._tick = 0
        self.left_out = 0
        self._thread = threading.Thread(target=self._run, name="film", daemon=True)
        self._thread.start()

    def show(self, frame: Frame) -> None:
        """The picture of the next tick. Never waits."""
        try:
            self._queue.put_nowait((frame.image, self._tick))
        except Full:
            self.left_out += 1
        self._tick += 1

    def close(self) -> None:
        while self._thread.is_alive():
            try:
                self._queue.put(None, timeout=0.1)
                self._thread.join()
            except Full:
                continue  # it is still encoding what waits

    def _run(self) -> None:
        try:
            while (item := self._queue.get()) is not None:
                self._writer.write(*item)
            self._writer.close()
        except DataError as err:
            self.error = str(err)
            while self._queue.get() is not None:  # so that `close` does not wait for ever
                pass
