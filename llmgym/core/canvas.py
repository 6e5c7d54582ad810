"""Pictures of environments: a matplotlib figure of a fixed size, without a window, and its pixels."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray


def blank(width: int, height: int) -> Any:
    """An empty figure of so many pixels; importing matplotlib is left until here."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    FigureCanvasAgg(figure)
    return figure


def pixels(figure: Any, axes: Iterable[Any]) -> NDArray[np.uint8]:
    """The figure as uint8 [height, width, 3], with small labels on these axes."""
    for axis in axes:
        axis.tick_params(labelsize=7)
        axis.xaxis.label.set_size(8)
        axis.yaxis.label.set_size(8)
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
