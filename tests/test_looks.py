"""What a person sees: texts that the font can draw, and places that do not collide."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pygame
import pytest

from game.hud import help_columns
from game.keys import default_bindings
from game.paint import BACK, Painter
from game.window import Window
from stub_world import ACTIONS


@pytest.fixture
def window() -> Iterator[Window]:
    window = Window(default_bindings(ACTIONS), ACTIONS, (1280, 800))
    yield window
    window.close()


def test_the_font_has_every_letter_of_the_help(window: Window) -> None:
    font = pygame.font.Font(None, 20)
    texts = "".join(
        text for column in help_columns(ACTIONS, default_bindings(ACTIONS)) for row in column for text in row
    )
    missing = _drawn(font, "\ue000")
    assert [
        letter for letter in sorted(set(texts)) if letter != " " and _drawn(font, letter) == missing
    ] == []
    assert _drawn(font, "\u2191") == missing  # arrows: what this test is here for


def _drawn(font: pygame.font.Font, letter: str) -> bytes:
    return pygame.image.tobytes(font.render(letter, True, "white"), "RGBA")


def test_title_name_and_dots_stand_apart_while_a_world_loads(window: Window) -> None:
    window.loading("rooms", 1.0)
    lit = (pygame.surfarray.array3d(window.screen) != np.array(BACK)).any(2)
    rows = _runs(lit.any(0))
    assert len(rows) == 3
    dots = lit[:, slice(*rows[2])]
    assert len(_runs(dots.any(1))) == 3


def test_no_text_is_drawn_as_nothing() -> None:
    assert Painter().text("").get_width() == 0


def test_letters_are_spaced_evenly(window: Window) -> None:
    widths = [Painter().text("e" * n, 16).get_width() for n in (10, 20, 40)]
    assert abs(widths[2] - 2 * widths[1]) <= 2
    assert abs(widths[1] - 2 * widths[0]) <= 2


def _runs(lit: np.ndarray) -> list[tuple[int, int]]:
    """First and end of each stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], lit.astype(np.int8), [0]))))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
