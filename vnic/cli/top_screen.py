"""`vnic top` in a terminal: keys, drawing and the terminal's state, by curses."""

from __future__ import annotations

import curses
import locale
import signal
import subprocess
import sys
import time
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

from dataplane.errors import VnicError
from vnic.cli.common import connect
from vnic.cli.plot_text import has_blocks, has_colours
from vnic.cli.top_rows import add_past, rows_now
from vnic.cli.top_view import View, past_columns

if TYPE_CHECKING:
    from vnic.api.client import Client

KEYS = {
    curses.KEY_UP: "up", curses.KEY_DOWN: "down", curses.KEY_PPAGE: "pgup",
    curses.KEY_NPAGE: "pgdn", curses.KEY_HOME: "home", curses.KEY_END: "end",
    curses.KEY_ENTER: "enter", curses.KEY_BACKSPACE: "backspace",
}  # fmt: skip
NAMES = {
    "\n": "enter",
    "\r": "enter",
    "\t": "tab",
    "\x1b": "esc",
    "\x7f": "backspace",
    "\b": "backspace",
}
ESCAPE_MS = 25  # after which ESC is a key of its own, not the beginning of another one
SETTING_MS = 50  # how often a change that is being made is looked at


def run(view: View, delay_s: float) -> None:
    """Shows the instance until the user quits. Restores the terminal however it ends. Raises
    VnicError where the instance does not run at the beginning, curses.error where the terminal
    cannot do it."""
    locale.setlocale(locale.LC_ALL, "")
    with connect(view.instance) as client:
        _refresh(view, client)
    ends = {number: signal.signal(number, _end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        curses.set_escdelay(ESCAPE_MS)
        curses.wrapper(lambda window: Screen(window, view, delay_s).run())
    finally:
        for number, handler in ends.items():
            signal.signal(number, handler)


def _end(number: int, _: FrameType | None) -> None:
    """Ends by an exception, so that the terminal is restored."""
    sys.exit(128 + number)


def _refresh(view: View, client: Client) -> None:
    view.rows = rows_now(client)
    view.clock = time.strftime("%H:%M:%S")


class Screen:
    """The terminal. All that is shown is decided by the View."""

    def __init__(self, window: curses.window, view: View, delay_s: float) -> None:
        self._window, self._view, self._delay_s = window, view, delay_s
        self._client: Client | None = None
        self._setting: subprocess.Popen[str] | None = None
        self._blocks = has_blocks()
        window.keypad(True)
        with suppress(curses.error):  # terminals that cannot hide it
            curses.curs_set(0)
        self._styles = {"": curses.A_NORMAL, "bold": curses.A_BOLD, "reverse": curses.A_REVERSE,
                        "dim": curses.A_DIM, "alarm": curses.A_BOLD}  # fmt: skip
        if has_colours() and curses.has_colors():
            curses.use_default_colors()
            curses.init_pair(1, curses.COLOR_RED, -1)
            self._styles["alarm"] = curses.color_pair(1) | curses.A_BOLD

    def run(self) -> None:
        due = time.monotonic()
        try:
            while True:
                now = time.monotonic()
                if now >= due:
                    due = now + self._delay_s
                    if not self._view.paused:
                        self._ask()
                self._draw()
                self._window.timeout(self._wait_ms(due))
                if self._key() == "quit":
                    return
                self._look_at_setting()
        finally:
            self._close()
            if self._setting is not None:
                self._setting.wait()

    def _wait_ms(self, due: float) -> int:
        most = SETTING_MS if self._setting is not None else 1 << 20
        return max(min(int((due - time.monotonic()) * 1000) + 1, most), 0)

    # -- the instance ------------------------------------------------------------------------------

    def _ask(self) -> None:
        """Asks for new numbers. If the instance is away, its last numbers stay, and it is asked
        again later: after a crash of its worker it is back soon."""
        view = self._view
        try:
            if self._client is None:
                self._client = connect(view.instance)
            _refresh(view, self._client)
            height, width = self._window.getmaxyx()
            add_past(self._client, view.visible(height), past_columns(width))
        except VnicError as error:
            self._close()
            view.message = str(error)

    def _close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def _set_rate(self) -> None:
        view = self._view
        if self._setting is not None:
            view.message = "another change is being made"
            return
        words = ["shape", "set", view.line, f"rate={view.typed.strip()}", "-i", view.instance]
        self._setting = subprocess.Popen(
            [sys.executable, "-m", "vnic.cli.main", *words],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        view.message = f"{view.line}: setting the rate"

    def _look_at_setting(self) -> None:
        if self._setting is not None and self._setting.poll() is not None:
            said = self._setting.communicate()[0].strip().splitlines()
            # what changed, or the error; not the generation, which comes behind
            told = [each for each in said if not each.startswith("generation ")]
            self._view.message = told[-1] if told else "done"
            self._setting = None
            if not self._view.paused:
                self._ask()

    # -- the terminal ------------------------------------------------------------------------------

    def _key(self) -> str:
        """Waits for a key, for no longer than was set, and does what it means."""
        try:
            key: Any = self._window.get_wch()
        except curses.error:  # none came
            return ""
        if key == curses.KEY_RESIZE:
            curses.update_lines_cols()
            self._window.clear()
            return ""
        name = KEYS.get(key, "") if isinstance(key, int) else NAMES.get(key, key)
        done = self._view.press(name) if name else ""
        if done == "rate":
            self._set_rate()
        return done

    def _draw(self) -> None:
        height, width = self._window.getmaxyx()
        # The last column of the last line stays free: writing there scrolls some terminals.
        lines = self._view.draw(width - 1, height, blocks=self._blocks)
        self._window.erase()
        for y, line in enumerate(lines[:height]):
            x = 0
            for part in line:
                with suppress(curses.error):  # a resize since, and the next drawing is right
                    self._window.addstr(y, x, part.text, self._styles[part.style])
                x += len(part.text)
        self._window.refresh()
