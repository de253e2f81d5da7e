"""A dream goes on the same whether its ticks are painted or not, and whether it slept as bytes meanwhile."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from game.keys import Command, Input
from game.session import Mode, Session
from game.slots import Slots
from stub_world import press
from tiny import TINY, tiny_world
from world_model import World, load_world
from world_model.state_file import _digest
from world_model.types import WorldError

SCRIPT = [1, 1, 2, 3, 0, 1, 2, 2, 1, 3] * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_world(tmp_path_factory.mktemp("worlds") / "tiny")


@pytest.fixture(scope="module")
def world(folder: Path) -> World:
    return load_world(folder)  # every test begins with a reset, or needs none


@pytest.fixture(scope="module")
def packed(folder: Path) -> bytes:
    world = load_world(folder)
    world.reset(seed=3)
    for action in SCRIPT:
        world.step(action, paint=False)
    return world.pack_state(world.snapshot())


def _shown(world: World) -> tuple[str, bytes, list[bytes]]:
    """Everything that can be seen of the present moment."""
    pictures = [k.thumbnail.tobytes() for k in world.memory.keyframes]
    return world.snapshot().hash(), world.paint().image.tobytes(), pictures


@pytest.mark.parametrize("every", [2, 3, 1000])
def test_a_tick_that_is_not_painted_is_dreamed_the_same(world: World, every: int) -> None:
    world.reset(seed=1)
    wanted = []
    for action in SCRIPT:
        world.step(action)
        wanted.append(_shown(world))
    world.reset(seed=1)
    last = 0
    for tick, action in enumerate(SCRIPT):
        paint = tick % every == 0
        frame = world.step(action, paint=paint)
        last = tick if paint else last
        assert frame.info.painted == paint
        # A tick whose thumbnail was needed may have been painted since.
        assert frame.image.tobytes() in [picture for _, picture, _ in wanted[last : tick + 1 - (not paint)]]
        assert world.snapshot().hash() == wanted[tick][0]
        if tick % 7 == 0:  # the thumbnails are right although nobody looked at most of their frames
            assert [k.thumbnail.tobytes() for k in world.memory.keyframes] == wanted[tick][2]
    assert _shown(world) == wanted[-1]


def test_a_snapshot_that_was_not_painted_can_be_painted_later(world: World) -> None:
    world.reset(seed=1)
    for action in SCRIPT[:6]:
        wanted = world.step(action)
    world.reset(seed=1)
    for action in SCRIPT[:6]:
        frame = world.step(action, paint=False)
    kept = world.snapshot()
    size = kept.nbytes
    for action in SCRIPT:
        world.step(action)
    assert not np.array_equal(frame.image, wanted.image)
    for late in (frame.painted(), world.paint(kept)):
        np.testing.assert_array_equal(late.image, wanted.image)
        assert late.info.painted and late.painted() is late
    assert kept.nbytes == size, "a bound on memory must not be overrun by painting"


def test_pictures_painted_late_are_owned_by_the_caller(world: World) -> None:
    world.reset(seed=1)
    frame = world.step(1, paint=False)
    kept = world.paint().image.copy()
    frame.image[:] = 0
    frame.painted().image[:] = 0
    world.paint().image[:] = 0
    np.testing.assert_array_equal(world.snapshot().image, kept)


@pytest.mark.parametrize("ticks", [0, 1, 30])
def test_a_packed_state_comes_back_exactly_and_dreams_on_the_same(folder: Path, ticks: int) -> None:
    world = load_world(folder)
    world.reset(seed=3)
    for action in SCRIPT[:ticks]:
        world.step(action, paint=False)
    data = world.pack_state(world.snapshot())
    wanted = [_shown(world)] + [(world.step(a), _shown(world))[1] for a in SCRIPT]
    later = load_world(folder)
    later.restore(later.unpack_state(data))
    assert [_shown(later)] + [(later.step(a), _shown(later))[1] for a in SCRIPT] == wanted


def test_a_state_of_other_weights_is_one_clear_error(packed: bytes, tmp_path: Path) -> None:
    other = load_world(tiny_world(tmp_path / "tiny", seed=1))
    with pytest.raises(WorldError, match="another world or other weights"):
        other.unpack_state(packed)


def test_no_altered_byte_is_taken(world: World, packed: bytes) -> None:
    data = packed
    positions = [*range(0, 300, 7), *np.random.default_rng(0).integers(0, len(data), 60).tolist()]
    for at in positions:
        broken = bytearray(data)
        broken[at] ^= 1 << (at % 8)
        with pytest.raises(WorldError):
            world.unpack_state(bytes(broken))
    for end in (0, 7, 8, 100, len(data) // 2, len(data) - 1):
        with pytest.raises(WorldError):
            world.unpack_state(data[:end])


def _forged(data: bytes, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], object]) -> bytes:
    """A file whose hash is right, by somebody who wants to be let in."""
    length = int.from_bytes(data[:8], "little")
    moment = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["moment"])
    tensors = {name: t.clone() for name, t in safetensors.torch.load(data).items()}
    change(tensors, moment)
    text = json.dumps(moment)
    tensors = {name: t.contiguous() for name, t in tensors.items()}
    return safetensors.torch.save(tensors, {"moment": text, "payload_sha256": _digest(text, tensors)})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t, m: t["dream.z"].fill_(float("nan")), "NaN"),
        (lambda t, m: t["dream.phase"].fill_(5), "phase"),
        (lambda t, m: t["dream.attended"].fill_(99), "attended"),
        (lambda t, m: t["dream.bank.born"].fill_(-1), "born"),
        (lambda t, m: t["dream.bank.filled"].fill_(False), "thumbnails"),
        (lambda t, m: m["numbers"].update({"dream.trunk.filled": 10**9}), "filled"),
        (lambda t, m: m["numbers"].update({"dream.tick": True}), "numbers"),
        (lambda t, m: m["numbers"].pop("dream.seed"), "numbers"),
        (lambda t, m: m["thumbnails"].pop(), "does not fit"),
        (lambda t, m: m.update(thumbnails=3), "thumbnails"),
        (lambda t, m: m.update(channels_last=[3]), "channels_last"),
        (lambda t, m: m.update(guard_events=None), "guard_events"),
        (lambda t, m: m.update(schema=2), "newer"),
        (lambda t, m: m.update(schema="x"), "schema"),
        (lambda t, m: t.pop("dream.z"), "'dream.z' is missing"),
        (lambda t, m: t.update(extra=torch.zeros(1)), "'extra' is unexpected"),
        (lambda t, m: t.update({"dream.z": t["dream.z"].half()}), "'dream.z' does not fit"),
        (lambda t, m: t.update({"dream.z": t["dream.z"][:, :1]}), "'dream.z' does not fit"),
    ],
)
def test_a_forged_state_is_refused(world: World, packed: bytes, change: Any, reason: str) -> None:
    with pytest.raises(WorldError, match=reason):
        world.unpack_state(_forged(packed, change))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04\x95 pickle",
        (2).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (10**18).to_bytes(8, "little") + b"{}",
        safetensors.torch.save({"a": torch.zeros(3)}),
        safetensors.torch.save({"a": torch.zeros(3)}, {"moment": "{}", "payload_sha256": "0"}),
        bytes((64 << 20) + 1),
    ],
)
def test_what_is_no_state_at_all_is_refused(world: World, data: bytes) -> None:
    with pytest.raises(WorldError, match="packed state"):
        world.unpack_state(data)


def test_the_hash_is_of_the_dream_and_not_of_its_picture(world: World) -> None:
    world.reset(seed=3)
    world.step(1)
    state = world.snapshot()
    assert replace(state, picture=world._picture(state.dream, state.image)).hash() == state.hash()
    moved = replace(state.dream, z=state.dream.z + 1)
    assert replace(state, dream=moved).hash() != state.hash()


def test_a_packed_state_has_about_the_size_of_the_state(world: World, packed: bytes) -> None:
    state = world.unpack_state(packed)
    assert len(packed) < state.nbytes + 8192
    assert len(state.thumbnails) <= TINY.dynamics.keyframes


def _playing(world: World, slots: Path) -> Session:
    session = Session(world, slots=Slots(slots, world))
    session.begin(seed=2)
    return session


def test_a_slot_survives_the_program_and_is_back_at_once(folder: Path, tmp_path: Path) -> None:
    session = _playing(load_world(folder), tmp_path)
    for action in SCRIPT:
        session.advance(Input(action))
    session.advance(press(Command.PAUSE))
    session.advance(press(Command.SAVE))
    saved, picture = session.world.snapshot().hash(), session.frame.image
    later = _playing(load_world(folder), tmp_path)
    later.advance(press(Command.PAUSE))
    later.advance(press(Command.LOAD))
    assert later.messages[-1] == "slot 1: back at tick 30"
    assert later.mode == Mode.PAUSED, "it was not dreamt again"
    assert later.world.snapshot().hash() == saved
    np.testing.assert_array_equal(later.frame.image, picture)


def test_a_slot_of_another_world_is_one_clear_message(folder: Path, tmp_path: Path) -> None:
    session = _playing(load_world(folder), tmp_path / "slots")
    session.advance(press(Command.SAVE))
    other = _playing(load_world(tiny_world(tmp_path / "tiny", seed=1)), tmp_path / "slots")
    before = other.world.snapshot()
    other.advance(press(Command.PAUSE))
    other.advance(press(Command.LOAD))
    assert "another world or other weights" in other.messages[-1]
    assert other.world.snapshot() is before
