"""What a person sees: texts that the font can draw, and places that do not collide."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pygame
import pytest

from game.keys import default_bindings
from game.labels import figures, help_columns
from game.loop import HudState
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


PARTS = {"trunk": 9.0, "head": 5.0, "decode": 6.0, "poll": 0.01}
STATE = HudState("rooms", fps=25.0, memory=900.0, parts=PARTS)


@pytest.mark.parametrize("size", [(1280, 800), (500, 300), (320, 200)])
def test_figures_and_badges_stand_apart_and_within_the_window(window: Window, size: tuple[int, int]) -> None:
    state = replace(STATE, mode="paused", player="wander", filming=True, over=True, speed=0.125)
    pygame.display.set_mode(size, pygame.RESIZABLE)
    screen = Screen(window.screen)
    window._fit()
    window.hud.draw(screen, window.screen.get_rect(), state, True, False)  # type: ignore[arg-type]
    panel, badge = screen.spots
    assert not panel.colliderect(badge)
    assert window.screen.get_rect().contains(panel) and window.screen.get_rect().contains(badge)


def test_a_long_message_is_wrapped_and_none_of_it_is_lost(window: Window) -> None:
    text = "could not be saved: /" + "folder/" * 40 + "slot.json. Free some disk space."
    lines = window.painter.wrapped(text, 22, 400)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert max(window.painter.text(line, 22).get_width() for line in lines) <= 401
    assert window.painter.wrapped("", 22, 400) == [""]
    pygame.display.set_mode((500, 300), pygame.RESIZABLE)
    window._fit()
    screen = Screen(window.screen)
    state = replace(STATE, message=text)
    window.hud.draw(screen, window.screen.get_rect(), state, False, False)  # type: ignore[arg-type]
    (note,) = screen.spots
    assert window.screen.get_rect().contains(note)


def test_the_figures_name_stalls_parts_and_memory() -> None:
    said = " ".join(text for _, parts in figures(replace(STATE, longest_stall=61.4)) for text, _ in parts)
    for wanted in ("longest stall 61 ms", "900 MB", "trunk 9.0", "decode 6.0 ms"):
        assert wanted in said
    assert "poll" not in said  # too little to be worth a place


class Screen:
    """A surface that notes where something is drawn."""

    def __init__(self, surface: pygame.Surface) -> None:
        self._surface, self.spots = surface, []  # type: pygame.Surface, list[pygame.Rect]

    def get_size(self) -> tuple[int, int]:
        return self._surface.get_size()

    def blit(self, what: pygame.Surface, where: Any) -> pygame.Rect:
        self.spots.append(what.get_rect(topleft=where[:2] if isinstance(where, tuple) else where.topleft))
        return self._surface.blit(what, where)


def _runs(lit: np.ndarray) -> list[tuple[int, int]]:
    """First and end of each stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], lit.astype(np.int8), [0]))))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
