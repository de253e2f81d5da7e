"""Keys of one's own: a small TOML file whose entries replace the default keys of the same name.

    [game]
    up = ["up", "i"]            # the world's keys: up, down, left, right and whatever its actions name
    [commands]
    pause = ["p", "space"]      # the names of `keys.Command`

A key that the file gives to something is taken from whatever has it by default. Names are those of SDL; case
does not matter. One file serves all worlds: what it says of another world's keys (`q = ["z"]`) does no harm.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from game.keys import Bindings, Command, default_bindings
from world_model.types import Action, DataError

KEYS_NAME = "keys.toml"
MAX_BYTES = 64 << 10
NAMED_KEYS = frozenset(
    {"up", "down", "left", "right", "space", "return", "enter", "escape", "tab"}
) | frozenset(
    {"backspace", "delete", "insert", "home", "end", "page up", "page down", "pause", "menu", "caps lock"}
    | {f"{side} {key}" for side in ("left", "right") for key in ("shift", "ctrl", "alt", "meta")}
)
PATTERN = re.compile(r"\S|f([1-9]|1[0-9]|2[0-4])|\[[0-9./*+=-]\]")
"""Any single sign, the function keys, and those of the number pad."""
SLOT_KEY = re.compile(r"[0-9]|\[[0-9]\]")
"""A digit: the key says which slot is meant."""


def read_bindings(path: Path, actions: Sequence[Action] = (), named: bool = False) -> Bindings:
    """The defaults where there is no such file, unless a person `named` it: then that is an error too.

    The name of any key may stand for a key of the world, as another world than this one may have it. Raises
    DataError that names the entry and the reason.
    """
    bindings = default_bindings(actions)
    if not path.exists():
        if named:
            raise DataError(f"{path}: there is no such file of key bindings")
        return bindings
    data = _read(path)
    unknown = set(data) - {"game", "commands"}
    if unknown:
        raise DataError(f"{path}: unknown section {sorted(unknown)[0]!r}; there are: game, commands")
    game = _section(path, data, "game", sorted(set(bindings.game.values())))
    commands = _section(path, data, "commands", [c.value for c in Command])
    for key in commands.get(Command.SLOT, []):
        if not SLOT_KEY.fullmatch(key):
            raise DataError(f"{path}: commands.slot names a key {key!r} that is no digit")
    _check_conflicts(path, game, commands)
    taken = {key for keys in (*game.values(), *commands.values()) for key in keys}
    return Bindings(
        _kept(bindings.game, game, taken) | {key: name for name, keys in game.items() for key in keys},
        _kept(bindings.commands, commands, taken)
        | {key: Command(name) for name, keys in commands.items() for key in keys},
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: it is larger than {MAX_BYTES:,} bytes; is it a list of keys?")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise DataError(f"{path}: it cannot be read ({err.strerror})") from err
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as err:
        raise DataError(f"{path}: it is not TOML ({err})") from err


def _section(path: Path, data: dict[str, Any], section: str, names: list[str]) -> dict[str, list[str]]:
    """Its entries, keys in lower case. `names` are those that there are in this world."""
    entries = data.get(section, {})
    if not isinstance(entries, dict):
        raise DataError(f"{path}: {section!r} is not a section")
    for name, keys in entries.items():
        if name not in names and not (section == "game" and _is_key(name)):
            raise DataError(f"{path}: unknown name {section}.{name}; there are: {', '.join(names)}")
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise DataError(f'{path}: {section}.{name} is not a list of keys, as in ["up", "w"]')
        for key in keys:
            if not _is_key(key.lower()):
                raise DataError(f"{path}: {section}.{name} names a key {key!r} that does not exist")
    return {name: [key.lower() for key in keys] for name, keys in entries.items()}


def _is_key(name: str) -> bool:
    """Worlds call their keys by these names too."""
    return name in NAMED_KEYS or PATTERN.fullmatch(name) is not None


def _check_conflicts(path: Path, *sections: dict[str, list[str]]) -> None:
    owners: dict[str, str] = {}
    for name, keys in (entry for section in sections for entry in section.items()):
        for key in keys:
            if owners.setdefault(key, name) != name:
                raise DataError(f"{path}: the key {key!r} is given to both {owners[key]} and {name}")


def _kept(defaults: dict[str, Any], named: dict[str, list[str]], taken: set[str]) -> dict[str, Any]:
    """Default keys of the names that the file leaves alone, as far as it does not take them."""
    return {key: name for key, name in defaults.items() if str(name) not in named and key not in taken}
