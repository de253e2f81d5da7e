"""What `world.json` may say of a world: every other value is one clear error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tiny import RECALLING, TINY
from world_model.config import WorldConfig, world_config_from_json
from world_model.types import WorldError

SHIPPED = sorted((Path(__file__).resolve().parents[1] / "assets" / "worlds").glob("*/world.json"))


def _json(config: WorldConfig = TINY) -> Any:
    return json.loads(json.dumps(config.to_json()))


@pytest.mark.parametrize("config", [TINY, RECALLING])
def test_a_config_survives_its_file(config: WorldConfig) -> None:
    assert world_config_from_json(_json(config)) == config


@pytest.mark.parametrize("path", SHIPPED, ids=[p.parent.name for p in SHIPPED])
def test_shipped_worlds_are_accepted(path: Path) -> None:
    assert world_config_from_json(json.loads(path.read_text())["config"]).name


@pytest.mark.parametrize("name", ["../../../evil", "a/b", "a\\b", ".hidden", "..", "", "a b", "x\n", 5, None])
def test_a_name_that_is_no_folders_name_is_refused(name: object) -> None:
    with pytest.raises(WorldError, match="'name' of WorldConfig"):
        world_config_from_json(_json() | {"name": name})


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("phases", "x"),
        ("phases", True),
        ("head_steps", "2"),
        ("head_steps", 0),
        ("pose_scale", 0),
        ("pose_scale", 10**400),
        ("pose_origin", ["a", 0]),
        ("pose_origin", [0]),
        ("actions", []),
        ("actions", 5),
        ("actions", [{"name": 5, "default_keys": []}]),
        ("actions", [{"name": "go", "default_keys": [1]}]),
        ("actions", [{"name": "go", "default_keys": "up"}]),
        ("dynamics", []),
        ("dynamics.window", "x"),
        ("dynamics.window", 0),
        ("dynamics.layers", -1),
        ("dynamics.pose", 1),
        ("dynamics.attention_heads", 5),
        ("dynamics.head_dim", 7),
        ("dynamics.paint_bits", [60]),
        ("dynamics.heights", [0.2, -0.1]),
        ("dynamics.tile", float("nan")),
        ("dynamics.horizon", 0),
        ("tokenizer.width", 65),
        ("tokenizer.encoder_channels", [8, 8]),
        ("tokenizer.encoder_channels", 8),
        ("audio", 5),
    ],
)
def test_what_fits_no_world_is_one_clear_error(place: str, value: object) -> None:
    data = _json()
    *inner, last = place.split(".")
    (data[inner[0]] if inner else data)[last] = value
    with pytest.raises(WorldError, match=r"world\.json"):
        world_config_from_json(data)
