"""Contact sheets as PNG files, without a drawing library: torch and zlib are enough."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def save_rows(path: Path, rows: list[list[NDArray[np.uint8]]], shrink: int = 1) -> None:
    """Writes pictures (H, W, 3) side by side, row under row; missing ones at a row's end stay black."""
    height, width = rows[0][0].shape[:2]
    sheet = np.zeros((height * len(rows), width * max(map(len, rows)), 3), np.uint8)
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            sheet[r * height : (r + 1) * height, c * width : (c + 1) * width] = image
    write_png(path, np.ascontiguousarray(sheet[::shrink, ::shrink]))


def write_png(path: Path, image: NDArray[np.uint8]) -> None:
    """Writes uint8 (H, W, 3) as an 8-bit RGB PNG."""
    height, width = image.shape[:2]
    raw = np.empty((height, 1 + 3 * width), np.uint8)
    raw[:, 0] = 0  # no filter
    raw[:, 1:] = image.reshape(height, -1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw.tobytes(), 6)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
