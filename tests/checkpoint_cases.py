"""What the tests of saved files share: a small set of tensors, a world folder, hand-made headers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from world_model.checkpoint import (
    SCHEMA,
    WEIGHTS_NAME,
    WORLD_NAME,
    save_weights,
    write_json,
)
from world_model.types import WorldError


def small() -> dict[str, Tensor]:
    return {
        "a.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "b": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "c": torch.tensor([7], dtype=torch.int64),
    }


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def refuses(call: Callable[[], object], path: Path, word: str = "") -> None:
    with pytest.raises(WorldError) as caught:
        call()
    assert str(path) in str(caught.value)
    assert word in str(caught.value)
    assert caught.value.exit_code == 3


def raw(header: object, payload: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + payload


def entry(dtype: str, shape: object, start: int, stop: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def make_world(folder: Path, **changes: Any) -> Path:
    sha = save_weights(folder / WEIGHTS_NAME, small())
    world: dict[str, Any] = {
        "schema": SCHEMA,
        "name": "rooms",
        "config": {"d_model": 8},
        "actions": [{"name": "noop"}],
        "licence": "CC0-1.0",
        "provenance": {},
        "scores": {},
        "weights_sha256": sha,
    }
    write_json(folder / WORLD_NAME, {k: v for k, v in (world | changes).items() if v is not ...})
    return folder
