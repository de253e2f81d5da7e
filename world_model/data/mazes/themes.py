"""What mazes are made of: Freedoom's textures and flats by theme, and the words for them.

Textures of `freedoom2.wad`, which ViZDoom brings. None of a theme's own textures moves; liquids do.
A region of a map takes one wall and one floor of its theme. Some of these combinations are held out:
no seed of the training or validation split ever shows them.
"""

from __future__ import annotations

from dataclasses import dataclass

SKY_FLAT = "F_SKY1"


@dataclass(frozen=True)
class Theme:
    """Textures of one look.

    `panels` are textures to recognise a place by, with their widths in map units; `things` are editor
    numbers of decorations that stand still, `flames` of those that flicker.
    """

    name: str
    walls: tuple[str, ...]
    floors: tuple[str, ...]
    ceilings: tuple[str, ...]
    trims: tuple[str, ...]
    panels: tuple[tuple[str, int], ...]
    things: tuple[int, ...]
    flames: tuple[int, ...]


THEMES = (
    Theme(
        "brick",
        walls=("BRICK11", "BRICK7", "BRICK10", "BRICK12", "BIGBRIK1", "A-BRICK3"),
        floors=("FLAT5_7", "FLOOR4_6", "RROCK14", "FLAT8", "RROCK12"),
        ceilings=("CEIL5_2", "FLAT1_1", "CEIL3_1", "RROCK10"),
        trims=("BRICK6", "STONE3", "BROWN144"),
        panels=(("ZZWOLF12", 128), ("ZZWOLF13", 128), ("BRICKLIT", 64), ("BIGDOOR7", 128), ("PANRED", 64)),
        things=(2028, 35, 31),
        flames=(57, 46),
    ),
    Theme(
        "wood",
        walls=("WOOD1", "WOOD12", "PANEL4", "WOOD5", "A-MYWOOD", "ZZWOLF5"),
        floors=("FLAT5_2", "CEIL1_1", "FLAT5_1", "FLOOR0_2", "FLOOR4_5"),
        ceilings=("CEIL3_1", "FLAT5_2", "CEIL3_3", "RROCK10"),
        trims=("WOODMET1", "WOOD9", "BROWN144"),
        panels=(
            ("PANBOOK", 64),
            ("PANRED", 64),
            ("PANBLUE", 64),
            ("PANBLACK", 64),
            ("ZZWOLF7", 128),
            ("ZZWOLF8", 128),
            ("WOODGARG", 64),
        ),
        things=(35, 2028, 43),
        flames=(56, 44),
    ),
    Theme(
        "tech",
        walls=("STARTAN2", "TEKGREN2", "STARGR1", "ESPIG1", "TEKBRON1", "TEKWALL1"),
        floors=("FLOOR0_3", "FLAT14", "FLOOR4_1", "FLAT20", "SLIME16"),
        ceilings=("CEIL3_5", "CEIL5_1", "FLAT1", "CEIL4_2"),
        trims=("SUPPORT2", "TEKLITE", "COMPSPAN"),
        panels=(
            ("COMPSTA1", 128),
            ("COMPSTA2", 128),
            ("COMPUTE1", 128),
            ("COMPUTE4", 256),
            ("COMPTILE", 128),
            ("SPCDOOR1", 64),
            ("LITE2", 64),
        ),
        things=(2028, 48, 32),
        flames=(85, 86),
    ),
    Theme(
        "stone",
        walls=("STONE2", "STONE6", "A-ROCK", "STONEW1", "GRAYBIG", "ZZWOLF1"),
        floors=("FLAT1", "MFLR8_3", "RROCK13", "FLOOR4_8", "FLAT5_8"),
        ceilings=("FLAT5_4", "CEIL5_1", "MFLR8_4", "SLIME15"),
        trims=("STONE3", "GRAY5", "SUPPORT2"),
        panels=(("STONGARG", 128), ("ZZWOLF3", 128), ("ZZWOLF4", 128), ("BSTONE3", 64), ("LITESTON", 64)),
        things=(2028, 47, 35),
        flames=(55, 44),
    ),
    Theme(
        "metal",
        walls=("SHAWN2", "METAL1", "METAL2", "BRONZE1", "SUPPORT2", "ZZWOLF10"),
        floors=("FLAT23", "FLAT3", "FLAT4", "STEP1", "FCGRATE2"),
        ceilings=("FLAT23", "CEIL3_5", "FLAT4", "COMP01"),
        trims=("SUPPORT3", "METAL", "SHAWN2"),
        panels=(("SILVER2", 64), ("SILVER3", 64), ("LITEMET", 128), ("BIGDOOR2", 128), ("METAL6", 64)),
        things=(2028, 48),
        flames=(85, 70),
    ),
    Theme(
        "marble",
        walls=("MARBLE1", "GSTONE1", "MARBGRAY", "A-MARBLE", "MARBLE2", "A-TILE"),
        floors=("GRNROCK", "DEM1_6", "SLIME14", "FLOOR7_2", "DEM1_5"),
        ceilings=("DEM1_5", "CEIL5_1", "FLOOR7_2", "SLIME14"),
        trims=("MARBGRAY", "GSTONE1", "METAL"),
        panels=(
            ("MARBFACE", 128),
            ("MARBFAC2", 128),
            ("MARBFAC3", 128),
            ("GSTLION", 64),
            ("GSTGARG", 64),
            ("GSTSATYR", 64),
        ),
        things=(30, 31, 35),
        flames=(45, 56),
    ),
    Theme(
        "hellish",
        walls=("REDWALL", "SP_HOT1", "CRACKLE2", "SKULWALL", "A-REDROK", "ASHWALL2"),
        floors=("FLOOR6_1", "RROCK03", "FLAT5_6", "FLAT5_3", "RROCK01"),
        ceilings=("FLAT5_3", "RROCK03", "FLOOR6_2", "FLAT10"),
        trims=("METAL", "SKULWAL3", "SP_HOT1"),
        panels=(("SKSPINE1", 128), ("SP_FACE1", 128), ("BLOD3", 128), ("MARBFAC4", 64), ("SKSNAKE1", 64)),
        things=(32, 33, 47),
        flames=(42, 41),
    ),
    Theme(
        "sandstone",
        walls=("STWALL", "BIGWALL", "CARLLF1", "TANROCK2", "DOGLDIR", "BRICK5"),
        floors=("FLOOR3_3", "FLAT8", "RROCK11", "FLAT5", "FLOOR5_2"),
        ceilings=("FLOOR3_3", "RROCK09", "CEIL3_2", "FLAT5"),
        trims=("STWALL", "DRSIDE1", "BROWN96"),
        panels=(("MURAL1", 128), ("MURAL2", 128), ("LONGWALL", 256), ("DOKODO1B", 64)),
        things=(2028, 43),
        flames=(46, 57),
    ),
    Theme(
        "rocky",
        walls=("ROCK4", "CAVERN7", "SP_ROCK1", "TANROCK5", "A-DROCK1", "A-MOSROK"),
        floors=("RROCK16", "GRASS1", "FLAT10", "RROCK18", "RROCK17"),
        ceilings=("RROCK17", "MFLR8_4", "FLAT10", "RROCK16"),
        trims=("ROCK5", "BROVINE2", "STONE6"),
        panels=(("BROVINE2", 128), ("A-CAMO3", 128), ("A-VINES", 128), ("PIPES", 64)),
        things=(47, 54, 43),
        flames=(44, 45),
    ),
)

LIQUIDS = (
    ("LAVA1", "lava"),
    ("FWATER1", "water"),
    ("NUKAGE1", "slime"),
    ("BLOOD1", "blood"),
    ("SLIME01", "mud"),
)
SKIES = (("SKY1", "a cloudy"), ("SKY3", "a red"), ("SKY4", "a starry"), ("SKY2", "a black"))
LAMPS = ("FLAT2", "TLITE6_1", "TLITE6_6", "CEIL1_2", "GRNLITE1", "FLAT17")
"""Ceiling flats that look like lamps."""

THING_WORDS = (
    ("torches", (44, 45, 46, 55, 56, 57)),
    ("lamps", (2028, 85, 86)),
    ("candles", (35,)),
    ("trees", (43, 54)),
    ("columns", (30, 31, 32, 33, 48)),
    ("stalagmites", (47,)),
    ("floating skulls", (42,)),
    ("staring eyes", (41,)),
    ("burning barrels", (70,)),
)
SHADES = ((128, "dim"), (160, "shadowy"), (192, ""), (224, "bright"))


def is_held_out(wall: int, floor: int) -> bool:
    """Whether a theme's wall and floor, by their places in the theme, are never trained on together.

    One wall in five for each floor, so every texture is seen in training, in other company.
    """
    return (wall + 2 * floor) % 5 == 4


def textures() -> tuple[set[str], set[str]]:
    """All wall textures (skies among them) and all flats that a map may use."""
    walls = {sky for sky, _ in SKIES}
    flats = {SKY_FLAT, *LAMPS, *(flat for flat, _ in LIQUIDS)}
    for theme in THEMES:
        walls |= {*theme.walls, *theme.trims, *(panel for panel, _ in theme.panels)}
        flats |= {*theme.floors, *theme.ceilings}
    return walls, flats


def join(words: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([*([", ".join(words[:-1])] if words[1:] else []), *words[-1:]])


def sentence(
    shade: str, size: str, themes: list[str], floor: str | None, extras: list[str], sky: str | None
) -> str:
    """Describes a map: "a dim brick maze with a lava floor and blue torches under a red sky"."""
    kind = " ".join(word for word in (shade, size, join(themes)) if word)
    details = [f"a {floor} floor"] * (floor is not None) + extras
    text = f"{'an' if kind[0] in 'aeiou' else 'a'} {kind} maze"
    if details:
        text += f" with {join(details)}"
    return text if sky is None else f"{text} under {sky} sky"
