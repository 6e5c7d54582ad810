"""`render_mode="human"`: a live picture of one environment, in the terminal or in a window.

In a terminal it is the text of `ansi`, or the picture of `rgb_array` in coloured blocks where there is no text, redrawn in
place. Where stdout is no terminal and there is a display, it is a window of matplotlib with the picture; where there is neither,
the last picture is printed at the end. `LLMGYM_HUMAN=terminal` or `LLMGYM_HUMAN=window` chooses.
"""

import atexit
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.live import Live
from rich.style import Style
from rich.text import Text

from llmgym.core.checks import choice
from llmgym.errors import InvalidArgument

VARIABLE = "LLMGYM_HUMAN"
TERMINAL, WINDOW = "terminal", "window"

Pixels = NDArray[np.uint8]


class Shown(Protocol):
    """Where pictures appear, one after the other.

    Attributes:
        mode: the render mode that pictures are made in.
        watched: whether somebody may be watching, so that each has to stay for its time.
    """

    mode: str
    watched: bool

    def show(self, picture: Any, caption: str) -> None:
        """Put a picture in the place of the one before."""

    def close(self) -> None:
        """Leave everything as it was before the first."""


class Terminal:
    """Pictures in a terminal, each in the place of the one before.

    Args:
        mode: `ansi`, or `rgb_array` for coloured blocks.
        console: where to; None: stdout.
    """

    def __init__(self, mode: str, console: Console | None = None) -> None:
        self.mode = mode
        self.console = console or Console()
        self.watched = self.console.is_terminal
        self._live: Live | None = None

    def show(self, picture: Any, caption: str) -> None:
        """Redraw.

        Args:
            picture: text, or uint8 [height, width, 3].
            caption: one line below it.
        """
        size = self.console.size
        shown = Text(picture) if isinstance(picture, str) else blocks(picture, size.width, size.height - 2)
        shown.append(f"\n{caption}", style="dim")
        if self._live is None:
            self._live = Live(
                console=self.console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
            )
            self._live.start()
            atexit.register(self.close)
        self._live.update(shown, refresh=self.watched)

    def close(self) -> None:
        """Leave the last picture where it is, and give the cursor back."""
        if self._live is not None:
            atexit.unregister(self.close)
            self._live.stop()
            self._live = None
            if not self.watched:  # then nothing ended the line
                self.console.print()


class Window:
    """Pictures in a window of matplotlib.

    Raises:
        InvalidArgument: there is no display, or matplotlib has no toolkit that could open a window.
    """

    mode, watched = "rgb_array", True

    def __init__(self) -> None:
        from matplotlib import pyplot

        self._pyplot = pyplot
        self.figure = pyplot.figure()
        if not getattr(self.figure.canvas, "required_interactive_framework", None):
            self.close()
            raise InvalidArgument(
                f"render_mode='human': no window can be opened here (matplotlib draws with {pyplot.get_backend()}); "
                f"set {VARIABLE}={TERMINAL}, or use 'rgb_array'"
            )
        self._image: Any = None

    def show(self, picture: Any, caption: str) -> None:
        """Draw a picture, uint8 [height, width, 3], with a line of text below."""
        if self._image is None:
            axes = self.figure.add_axes((0.0, 0.06, 1.0, 0.94))
            axes.set_axis_off()
            self._image = axes.imshow(picture)
            self._caption = self.figure.text(0.01, 0.02, "")
            self.figure.show()
        self._image.set_data(picture)
        self._caption.set_text(caption)
        self.figure.canvas.draw_idle()
        self.figure.canvas.flush_events()

    def close(self) -> None:
        """Close the window."""
        self._pyplot.close(self.figure)


class Viewer:
    """Shows an environment step by step, at the pace of its `render_fps` where somebody may be watching.

    Args:
        modes: render modes of the simulation.
        fps: pictures a second.
        where: shows them; None: a terminal or a window, as the head of this module says.
        clock: seconds.
        sleep: waits so many seconds.

    Raises:
        InvalidArgument: a window was asked for and cannot be opened.
        UnknownName: another word in `LLMGYM_HUMAN`.
    """

    def __init__(
        self,
        modes: Sequence[str],
        fps: float,
        where: Shown | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._where = where or _somewhere(modes)
        self._period_s = 1.0 / fps
        self._clock, self._sleep = clock, sleep
        self._due_s = -math.inf
        self._steps, self._return = 0, 0.0

    def began(self, draw: Callable[[str], Any]) -> None:
        """An episode began; `draw` makes the picture in a render mode."""
        self._steps, self._return = 0, 0.0
        self._show(draw, "step 0")

    def stepped(self, draw: Callable[[str], Any], reward: float) -> None:
        """A step was taken."""
        self._steps += 1
        self._return += reward
        self._show(draw, f"step {self._steps:,}   reward {reward:.4g}   return {self._return:.4g}")

    def _show(self, draw: Callable[[str], Any], caption: str) -> None:
        now = self._clock()
        if self._where.watched and now < self._due_s:
            self._sleep(self._due_s - now)
            now = self._due_s
        self._where.show(draw(self._where.mode), caption)
        self._due_s = now + self._period_s

    def close(self) -> None:
        """Give the terminal back, or close the window."""
        self._where.close()


def _somewhere(modes: Sequence[str]) -> Shown:
    """A terminal or a window, by what there is and what `LLMGYM_HUMAN` says."""
    text = "ansi" if "ansi" in modes else "rgb_array"
    wanted = os.environ.get(VARIABLE, "")
    if wanted:
        choice(VARIABLE, wanted, (TERMINAL, WINDOW))
        if wanted == WINDOW and "rgb_array" not in modes:
            raise InvalidArgument(
                f"{VARIABLE}={WINDOW}: this environment draws no picture; allowed: {TERMINAL}"
            )
        return Window() if wanted == WINDOW else Terminal(text)
    console = Console()
    displays = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if not (console.is_terminal or console.is_jupyter) and displays and "rgb_array" in modes:
        try:
            return Window()
        except InvalidArgument:
            pass
    return Terminal(text, console)


def blocks(pixels: Pixels, columns: int, rows: int) -> Text:
    """A picture as text: half a character a point, the upper half in the colour of the letter, the lower in that behind it.

    Args:
        pixels: uint8 [height, width, 3].
        columns: most characters of a line, 1 or more.
        rows: most lines; 1 or more.
    """
    height, width, _ = pixels.shape
    step = max(1, -(-width // columns), -(-height // (2 * max(1, rows))))
    tall, wide = max(2, height // step // 2 * 2), max(1, width // step)
    at_y = np.minimum(np.arange(tall * step).reshape(tall, step), height - 1)
    at_x = np.minimum(np.arange(wide * step).reshape(wide, step), width - 1)
    points = (
        pixels[at_y.ravel()][:, at_x.ravel()].reshape(tall, step, wide, step, 3).mean(axis=(1, 3)).astype(int)
    )
    text = Text()
    for upper, lower in zip(points[::2].tolist(), points[1::2].tolist(), strict=True):
        for (r, g, b), (s, h, c) in zip(upper, lower, strict=True):
            text.append("▀", Style(color=f"rgb({r},{g},{b})", bgcolor=f"rgb({s},{h},{c})"))
        text.append("\n")
    text.rstrip()
    return text
