"""bfloat16 is used where it pays."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from world_model import precision


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    precision.native_dtype.cache_clear()
    yield
    precision.native_dtype.cache_clear()


@pytest.mark.parametrize(
    ("has", "tiles", "intel", "expected"),
    [
        (False, False, False, torch.float32),
        (False, False, True, torch.float32),
        (True, False, False, torch.bfloat16),
        (True, False, True, torch.float32),
        (True, True, True, torch.bfloat16),
    ],
)
def test_the_processor_decides(
    has: bool, tiles: bool, intel: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    monkeypatch.setattr(precision, "_by_intel", lambda: intel)
    assert precision.native_dtype("cpu") == expected
    assert precision.native_dtype("cuda") == torch.bfloat16
    assert precision.mixed_precision("cpu")._enabled is (expected == torch.bfloat16)
