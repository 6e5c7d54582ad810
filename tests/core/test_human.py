"""`render_mode="human"`: every reset and step shows itself, in a terminal or in a window."""

import io

import gymnasium
import numpy as np
import pytest
from rich.console import Console

from llmgym.core import human
from llmgym.errors import InvalidArgument, UnknownName


def terminal(mode: str = "ansi", **kwargs) -> tuple[human.Terminal, io.StringIO]:
    file = io.StringIO()
    return human.Terminal(mode, Console(file=file, width=60, height=20, **kwargs)), file


class Clock:
    """Time that passes only while somebody sleeps, and a little at each look."""

    def __init__(self) -> None:
        self.now, self.slept = 0.0, []

    def __call__(self) -> float:
        self.now += 0.01
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.mark.parametrize("env_id", ["llmgym/AFDRefill-v0", "llmgym/MemPlace-v0"])
def test_every_reset_and_step_shows_itself(env_id):
    env = gymnasium.make(env_id, render_mode="human")
    assert "human" in env.metadata["render_modes"]
    where, file = terminal(force_terminal=True)
    clock = Clock()
    env.unwrapped._viewer = human.Viewer(["ansi"], 4, where, clock, clock.sleep)
    env.reset(seed=0)
    told = [env.unwrapped._drawn("ansi")]
    _, reward, *_ = env.step(int(env.unwrapped.action_masks().argmax()))
    told.append(env.unwrapped._drawn("ansi"))
    assert env.render() is None
    shown = file.getvalue()
    for text in told:
        assert text.splitlines()[0][:40].rstrip() in shown
    assert "step 0" in shown and f"step 1   reward {reward:.4g}   return {reward:.4g}" in shown
    env.close()
    assert file.getvalue().startswith("\x1b[?25l") and file.getvalue().endswith("\x1b[?25h")  # the cursor
    assert "\x1b[1A" in file.getvalue()  # one picture in the place of the other
    assert sum(clock.slept) == pytest.approx(0.25 - 0.01)
    env.close()


def test_nobody_waits_where_nobody_watches():
    where, file = terminal()
    clock = Clock()
    viewer = human.Viewer(["ansi"], 4, where, clock, clock.sleep)
    viewer.began(lambda mode: "first")
    for _ in range(5):
        viewer.stepped(lambda mode: f"in {mode}", 1.5)
    viewer.close()
    assert file.getvalue() == "in ansi\nstep 5   reward 1.5   return 7.5\n" and not clock.slept


def test_an_episode_counts_for_itself():
    where, file = terminal()
    viewer = human.Viewer(["ansi"], 4, where)
    viewer.began(str)
    viewer.stepped(str, 1.0)
    viewer.began(str)
    viewer.close()
    assert file.getvalue().splitlines()[-1] == "step 0"


def test_pictures_without_text_are_blocks():
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[:20], picture[20:] = (255, 0, 0), (0, 0, 255)
    text = human.blocks(picture, 30, 5)
    lines = text.plain.splitlines()
    assert len(lines) <= 5 and {len(line) for line in lines} == {15} and set(text.plain) == {"▀", "\n"}
    assert str(text.spans[0].style) == "rgb(255,0,0) on rgb(255,0,0)"
    assert str(text.spans[-1].style) == "rgb(0,0,255) on rgb(0,0,255)"
    where, file = terminal("rgb_array", force_terminal=True, color_system="truecolor")
    viewer = human.Viewer(["rgb_array"], 4, where, lambda: 0.0, lambda seconds: None)
    viewer.began(lambda mode: picture)
    viewer.close()
    assert "38;2;255;0;0" in file.getvalue()


@pytest.mark.parametrize("height,width,columns,rows", [(1, 1, 5, 5), (7, 300, 10, 1), (300, 7, 80, 24)])
def test_blocks_of_any_size_fit(height, width, columns, rows):
    lines = human.blocks(np.full((height, width, 3), 9, np.uint8), columns, rows).plain.splitlines()
    assert 1 <= len(lines) <= max(rows, 1) and max(map(len, lines)) <= columns


def test_a_window_shows_pictures(monkeypatch):
    from matplotlib import pyplot
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    pyplot.switch_backend("agg")
    monkeypatch.setattr(FigureCanvasAgg, "required_interactive_framework", "none", raising=False)
    monkeypatch.setattr("matplotlib.figure.Figure.show", lambda self: None)
    window = human.Window()
    viewer = human.Viewer(["rgb_array"], 4, window, lambda: 0.0, lambda seconds: None)
    pictures = [np.full((8, 8, 3), value, np.uint8) for value in (10, 200)]
    viewer.began(lambda mode: pictures[0])
    viewer.stepped(lambda mode: pictures[1], 2.0)
    assert np.array_equal(window._image.get_array(), pictures[1])
    assert window._caption.get_text() == "step 1   reward 2   return 2"
    viewer.close()
    assert window.figure.number not in window._pyplot.get_fignums()


def test_what_is_asked_for_and_is_not_there(monkeypatch):
    from matplotlib import pyplot

    pyplot.switch_backend("agg")
    monkeypatch.setenv("LLMGYM_HUMAN", "window")
    with pytest.raises(InvalidArgument, match="no window can be opened here"):
        human.Viewer(["rgb_array", "ansi"], 4)
    with pytest.raises(InvalidArgument, match="draws no picture; allowed: terminal"):
        human.Viewer(["ansi"], 4)
    monkeypatch.setenv("LLMGYM_HUMAN", "paper")
    with pytest.raises(UnknownName, match="terminal"):
        human.Viewer(["ansi"], 4)
    monkeypatch.setenv("LLMGYM_HUMAN", "terminal")
    assert human.Viewer(["rgb_array"], 4)._where.mode == "rgb_array"


def test_many_lanes_do_not_have_it():
    with pytest.raises(
        InvalidArgument, match="render_mode='human' is not available; allowed: None, 'rgb_array'"
    ):
        gymnasium.make_vec("llmgym/AFDRefill-v0", num_envs=2, render_mode="human")
