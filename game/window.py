"""The window: events in, pictures out. Uses pygame."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # before pygame is imported

import pygame

from game.hud import Cards, Hud
from game.keys import Bindings, Command, Input, Keyboard
from game.loop import HudState
from game.pads import Pads
from game.paint import BACK, MUTED, TEXT, Painter, letterbox
from game.picker import Card
from world_model.types import Action, DisplayError, Frame

SIZE = (1280, 800)
OWN = {Command.HELP, Command.HUD, Command.MEMORY, Command.SCALING, Command.FULLSCREEN}
"""Commands that only change how things are shown."""


class Window:
    """A resizable window that is a `loop.FrontEnd`. Raises DisplayError where none can be opened."""

    def __init__(
        self,
        bindings: Bindings,
        actions: tuple[Action, ...] = (),
        size: tuple[int, int] = SIZE,
        fullscreen: bool = False,
    ) -> None:
        try:
            pygame.display.init()
            self._size, self._fullscreen = size, False
            _refuse_invisible()
            _show_directly()
            self._screen = pygame.display.set_mode(size, pygame.RESIZABLE)
            if fullscreen:
                self._toggle_fullscreen()
        except pygame.error as err:
            raise DisplayError(
                f"no window can be opened ({err}); set DISPLAY to a screen, or use `record` without one"
            ) from err
        pygame.display.set_caption("Reverie")
        pygame.key.set_repeat()
        self.keyboard, self.actions = Keyboard(bindings), actions
        self.pads = Pads(self.keyboard)
        self.painter = Painter()
        self.hud, self.cards = Hud(self.painter), Cards(self.painter)
        self.figures, self.memory, self.helping, self.sharp = True, False, False, False
        self.closing = False
        """The close button was pressed: whatever is shown, the person wants to leave."""
        self._in_menu = False
        self._native: pygame.Surface | None = None
        self._fit()

    @property
    def screen(self) -> pygame.Surface:
        return self._screen

    def bind(self, bindings: Bindings, actions: tuple[Action, ...]) -> None:
        """The keys and actions of the world that is shown from now on."""
        self.keyboard.release_all()
        self.keyboard.bindings, self.actions = bindings, actions

    def poll(self) -> Input:
        """Reads all events, and gives the action and commands of this tick."""
        if self._in_menu:  # nothing that was pressed there acts in the game
            self._in_menu = False
            self.keyboard.release_all()
        for event in pygame.event.get():
            self._handle(event)
        commands = tuple((c, key) for c, key in self.keyboard.take_commands() if not self._obey(c))
        return Input(self.keyboard.sample(self.actions), commands, self.keyboard.held_commands())

    def draw(self, frame: Frame, hud: HudState) -> None:
        """Paints the picture, and over it what the person wants to see."""
        self._fit()
        place = self._picture(frame)
        self.hud.draw(self._screen, place, hud, self.figures, self.memory)
        if self.helping:
            self.hud.help(self._screen, self.actions, self.keyboard.bindings)

    def flip(self) -> None:
        pygame.display.flip()

    def close(self) -> None:
        pygame.quit()

    def loading(self, name: str, seconds: float) -> None:
        """What is seen until the first picture: the name, and dots that move."""
        self._fit()
        self._screen.fill(BACK)
        p = self.painter
        lines = [(p.text("Reverie", 64, TEXT), -30), (p.text(f"falling asleep in {name}", 24, MUTED), 26)]
        center = self._screen.get_rect().center
        for text, dy in lines:
            self._screen.blit(text, text.get_rect(center=(center[0], center[1] + p.shift(dy))))
        for i in range(3):
            bright = 70 + int(150 * max(0.0, 1 - abs((seconds * 1.6) % 3 - i - 0.5)))
            spot = (center[0] + p.shift(22 * (i - 1)), center[1] + p.px(76))
            pygame.draw.circle(self._screen, (bright, bright, bright + 10), spot, p.px(4))
        self.flip()

    def menu_keys(self) -> list[str]:
        """Names of the keys pressed since the last call; "click 2" for a click on the third card.

        What is held stays held until the next `poll`: a stick that is pushed once moves once.
        """
        self._in_menu = True
        keys = []
        for event in pygame.event.get():
            if event.type == pygame.QUIT:
                self.closing = True
                keys.append("escape")
            elif event.type == pygame.KEYDOWN:
                keys.append(pygame.key.name(event.key))
            elif event.type == pygame.MOUSEBUTTONDOWN and event.button == 1:
                card = self.cards.at(event.pos)
                keys += [] if card is None else [f"click {card}"]
            else:
                self.pads.handle(event)
        buttons = {Command.PAUSE: "return", Command.RESTART: "escape"}
        keys += [buttons[c] for c, _ in self.keyboard.take_commands() if c in buttons]
        return keys + self.keyboard.take_taps()

    def draw_cards(self, title: str, cards: Sequence[Card], chosen: int, columns: int) -> None:
        self._fit()
        self.cards.draw(self._screen, title, cards, chosen, columns)

    def _handle(self, event: pygame.event.Event) -> None:
        if event.type == pygame.QUIT:
            self.closing = True
            self.keyboard.ask(Command.QUIT)
        elif event.type == pygame.KEYDOWN:
            self.keyboard.press(pygame.key.name(event.key))
        elif event.type == pygame.KEYUP:
            self.keyboard.release(pygame.key.name(event.key))
        elif event.type == pygame.WINDOWFOCUSLOST:
            self.keyboard.release_all()
        else:
            self.pads.handle(event)

    def _obey(self, command: Command) -> bool:
        """Does what concerns the window alone; whether it did."""
        if command == Command.HELP:
            self.helping = not self.helping
        elif command == Command.HUD:
            self.figures = not self.figures
        elif command == Command.MEMORY:
            self.memory = not self.memory
        elif command == Command.SCALING:
            self.sharp = not self.sharp
        elif command == Command.FULLSCREEN:
            self._toggle_fullscreen()
        elif command == Command.QUIT and self.helping and not self.closing:
            self.helping = False
        else:
            return False
        return True

    def _toggle_fullscreen(self) -> None:
        self._fullscreen = not self._fullscreen
        if self._fullscreen:
            self._size = self._screen.get_size()
            self._screen = pygame.display.set_mode((0, 0), pygame.FULLSCREEN)
        else:
            self._screen = pygame.display.set_mode(self._size, pygame.RESIZABLE)

    def _fit(self) -> None:
        """After a resize the display has a new surface."""
        self._screen = pygame.display.get_surface() or self._screen
        self.painter.fit(*self._screen.get_size())

    def _picture(self, frame: Frame) -> pygame.Rect:
        height, width = frame.image.shape[:2]
        place = letterbox((width, height), self._screen.get_size(), self.sharp)
        if place.size != self._screen.get_size():
            self._screen.fill(BACK)
        picture = pygame.image.frombuffer(frame.image.tobytes(), (width, height), "RGB")
        if self._native is None or self._native.get_size() != (width, height):
            self._native = pygame.Surface((width, height)).convert()
        self._native.blit(picture, (0, 0))
        scale: Callable[..., pygame.Surface] = pygame.transform.scale
        if not self.sharp:
            scale = pygame.transform.smoothscale
        scale(self._native, place.size, self._screen.subsurface(place))
        return place


def _refuse_invisible() -> None:
    """SDL falls back to a driver that shows nothing; that is right only where somebody asked for it."""
    driver = pygame.display.get_driver()
    if driver in ("offscreen", "dummy") and os.environ.get("SDL_VIDEODRIVER", "") != driver:
        pygame.display.quit()
        raise pygame.error("there is no screen")


def _show_directly() -> None:
    """On X11 pictures go to the screen as they are. SDL would make a texture of each and have OpenGL draw it,
    which takes 5 ms of a processor where there is no graphics card, and nothing is won where there is one."""
    if pygame.display.get_driver() == "x11":
        os.environ.setdefault("SDL_FRAMEBUFFER_ACCELERATION", "0")


def sdl_driver() -> str:
    """Opens a window for a moment and says by which driver. Raises DisplayError where none can be."""
    from game.keys import default_bindings

    window = Window(default_bindings(), size=(64, 40))
    try:
        return pygame.display.get_driver()
    finally:
        window.close()
