"""The smallest file that holds a map: a PWAD of three lumps."""

from __future__ import annotations

import struct


def pack_wad(text: str) -> bytes:
    """A PWAD with `MAP01`, `TEXTMAP` and `ENDMAP`."""
    lumps = [(b"MAP01", b""), (b"TEXTMAP", text.encode("ascii")), (b"ENDMAP", b"")]
    body, directory = b"", b""
    for name, data in lumps:
        directory += struct.pack("<ii8s", 12 + len(body), len(data), name)
        body += data
    return struct.pack("<4sii", b"PWAD", len(lumps), 12 + len(body)) + body + directory
