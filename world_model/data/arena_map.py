"""The map of the world `arena` as a WAD: a hall with pillars, monsters that come back, things to pick up.

A map in the format UDMF loads without a node builder. DECORATE (the game's own language for things)
says how the things differ from Doom's:

- the pistol fires in the tic in which the trigger is pulled, so a shot belongs to the tick of its action;
- monsters are weaker, come out of one of the gates again some seconds after they fell, and drop nothing;
- they walk in steps of a fifth of a second, five ticks of the world, stand still between, face the player
  and fight with claws and teeth: what two processor cores can learn of a fight in some hours;
- a wound does not tint the view;
- medikits and clips come back after some seconds.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence

Point = tuple[float, float]
Lumps = Iterable[tuple[str, bytes]]

RADIUS = 560.0
CORNERS = 8
PILLARS: tuple[Point, ...] = ((240, 240), (-240, 240), (-240, -240), (240, -240))
PILLAR_SIDE = 72.0
WALLS = ("STARTAN3", "STONE2", "STARGR1", "BROWN1", "METAL2", "TEKWALL4", "BRICK7", "GRAYBIG")
PILLAR_WALL, FLOOR, CEILING = "MARBFAC3", "FLOOR4_8", "CEIL3_5"
HEIGHT, LIGHT = 160, 208

SPAWNER, START, MEDIKIT, CLIP = 20001, 1, 2012, 2007

DECORATE = """
actor ArenaPistol : Weapon
{
  Weapon.AmmoType "Clip"
  Weapon.AmmoUse 1
  Weapon.AmmoGive 0
  AttackSound "weapons/pistol"
  States
  {
  Ready: PISG A 1 A_WeaponReady
    Loop
  Deselect: PISG A 1 A_Lower
    Loop
  Select: PISG A 1 A_Raise
    Loop
  Fire: PISG B 0 A_GunFlash
    PISG B 6 A_FireBullets(2.0, 0, -1, 10, "BulletPuff", 1)
    PISG C 4
    PISG A 2 A_ReFire
    Goto Ready
  Flash: PISF A 5 Bright A_Light1
    PISF A 0 A_Light0
    Stop
  }
}

actor ArenaPlayer : DoomPlayer
{
  Player.DisplayName "Marine"
  Player.StartItem "ArenaPistol"
  Player.StartItem "Clip", 50
  Player.DamageScreenColor "ff 00 00", 0.0
}

actor Felled : Inventory { Inventory.MaxAmount 1 }

actor ArenaImp : DoomImp
{
  Health 30
  Speed 24
  +LOOKALLAROUND
  States
  {
  Spawn: TROO A 7 A_Look
    Loop
  See: TROO A 0 A_Chase
    TROO A 7 A_FaceTarget
    TROO C 0 A_Chase
    TROO C 7 A_FaceTarget
    Loop
  Melee: TROO E 7 A_FaceTarget
    TROO G 7 A_CustomMeleeAttack(3 * random(1, 6), "imp/melee")
    Goto See
  Missile: Stop
  Pain: TROO H 7 A_Pain
    Goto See
  Death: TROO I 7 A_Scream
    TROO K 7 A_NoBlocking
    TROO M 70 A_GiveInventory("Felled", 1, AAPTR_MASTER)
    Stop
  XDeath: Goto Death
  }
}

actor ArenaDemon : Demon
{
  Health 40
  Speed 28
  +LOOKALLAROUND
  States
  {
  Spawn: SARG A 7 A_Look
    Loop
  See: SARG A 0 A_Chase
    SARG A 7 A_FaceTarget
    SARG C 0 A_Chase
    SARG C 7 A_FaceTarget
    Loop
  Melee: SARG E 7 A_FaceTarget
    SARG G 7 A_CustomMeleeAttack(3 * random(1, 8), "demon/melee")
    Goto See
  Pain: SARG H 7 A_Pain
    Goto See
  Death: SARG I 7 A_Scream
    SARG K 7 A_NoBlocking
    SARG N 70 A_GiveInventory("Felled", 1, AAPTR_MASTER)
    Stop
  }
}

actor ArenaSpawner 20001
{
  +NOINTERACTION
  States
  {
  Spawn: TNT1 A random(1, 180)
    TNT1 A 1 A_Jump(128, "Demon")
  Imp: TNT1 A 1 A_SpawnItemEx("ArenaImp", 0, 0, 0, 0, 0, 0, 0, SXF_SETMASTER)
    Goto Hold
  Demon: TNT1 A 1 A_SpawnItemEx("ArenaDemon", 0, 0, 0, 0, 0, 0, 0, SXF_SETMASTER)
    Goto Hold
  Hold: TNT1 A 5 A_JumpIfInventory("Felled", 1, "Again")
    Loop
  Again: TNT1 A 1 A_TakeInventory("Felled", 1)
    Goto Spawn
  }
}

actor ArenaMedikit : Medikit replaces Medikit { Inventory.RespawnTics 350 }
actor ArenaClip : Clip replaces Clip { Inventory.RespawnTics 250 }
"""

MAPINFO = """
gameinfo { playerclasses = "ArenaPlayer" }
map MAP01 "Arena" { sky1 = "SKY1" randomplayerstarts }
"""


def arena_wad() -> bytes:
    """The bytes of the WAD; the same at every call."""
    lumps = [("DECORATE", DECORATE.encode()), ("ZMAPINFO", MAPINFO.encode())]
    lumps += [("MAP01", b""), ("TEXTMAP", _textmap().encode()), ("ENDMAP", b"")]
    return pack_wad(lumps)


def pack_wad(lumps: Lumps) -> bytes:
    """A PWAD of these lumps (name, content), in order."""
    data, directory = b"", b""
    for name, content in lumps:
        directory += struct.pack("<ii8s", 12 + len(data), len(content), name.encode())
        data += content
    return struct.pack("<4sii", b"PWAD", len(directory) // 16, 12 + len(data)) + data + directory


def _textmap() -> str:
    corners = [_around(RADIUS, (i + 0.5) / CORNERS) for i in range(CORNERS)]
    blocks = ['namespace = "zdoom";']
    rings: list[tuple[Sequence[Point], Sequence[str]]] = [(corners[::-1], WALLS)]
    rings += [(_square(p, PILLAR_SIDE), [PILLAR_WALL] * 4) for p in PILLARS]
    count = 0
    for points, textures in rings:
        for i, (x, y) in enumerate(points):
            following = count + (i + 1) % len(points)
            blocks.append(_block("vertex", x=x, y=y))
            blocks.append(_block("sidedef", sector=0, texturemiddle=textures[i]))
            blocks.append(_block("linedef", v1=count + i, v2=following, sidefront=count + i, blocking=True))
        count += len(points)
    blocks.append(
        _block(
            "sector",
            heightfloor=0,
            heightceiling=HEIGHT,
            texturefloor=FLOOR,
            textureceiling=CEILING,
            lightlevel=LIGHT,
        )
    )
    return "\n".join(blocks + _things())


def _things() -> list[str]:
    spawners = [(*_around(RADIUS * 0.82, i / 5), SPAWNER) for i in range(5)]
    starts = [(*_around(RADIUS * 0.3, i / 8), START) for i in range(8)]
    items = [(*_around(RADIUS * 0.6, (i + 0.5) / 8), (MEDIKIT, CLIP)[i % 2]) for i in range(8)]
    always = {f"skill{i}": True for i in range(1, 6)} | {"single": True, "coop": True, "dm": True}
    return [
        _block("thing", x=x, y=y, angle=round(math.degrees(math.atan2(y, x))) % 360, type=kind, **always)
        for x, y, kind in [*spawners, *starts, *items]
    ]


def _around(radius: float, turn: float) -> Point:
    return round(radius * math.cos(turn * math.tau), 3), round(radius * math.sin(turn * math.tau), 3)


def _square(middle: Point, side: float) -> list[Point]:
    """Corners of a pillar, counter-clockwise: a line's front is on its right, which is outside."""
    (x, y), h = middle, side / 2
    return [(x - h, y - h), (x + h, y - h), (x + h, y + h), (x - h, y + h)]


def _block(kind: str, **fields: float | bool | str) -> str:
    def text(value: float | bool | str) -> str:
        return (
            str(value).lower()
            if isinstance(value, bool)
            else f'"{value}"'
            if isinstance(value, str)
            else str(value)
        )

    return f"{kind} {{ " + " ".join(f"{k} = {text(v)};" for k, v in fields.items()) + " }"
