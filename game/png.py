"""PNG files without an image library: pictures, and text beside them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np

from world_model.files import write_atomic
from world_model.types import Image


def png_bytes(image: Image, text: dict[str, str] | None = None, level: int = 6) -> bytes:
    """A PNG of uint8 (H, W, 3); `text` becomes tEXt chunks (Latin-1). Raises ValueError for other arrays."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"a picture is uint8 (H, W, 3), not {image.dtype} {image.shape}")
    height, width = image.shape[:2]
    rows = np.zeros((height, 1 + 3 * width), np.uint8)
    flat = image.reshape(height, 3 * width)
    rows[:, 0] = 1  # filter "Sub": the difference to the pixel on the left packs better
    rows[:, 1:4], rows[:, 4:] = flat[:, :3], flat[:, 3:] - flat[:, :-3]
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))]
    chunks += [(b"tEXt", k.encode("latin-1") + b"\0" + v.encode("latin-1")) for k, v in (text or {}).items()]
    chunks += [(b"IDAT", zlib.compress(rows.tobytes(), level)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def write_png(path: Path, image: Image, text: dict[str, str] | None = None) -> None:
    """Writes atomically. Raises DataError where the disk refuses."""
    write_atomic(path, [png_bytes(image, text)])


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
