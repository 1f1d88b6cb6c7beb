"""One look for all figures: readable sizes, colours that colour-blind readers can tell apart."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe & Ito (2008), without the yellow that vanishes on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7F7F7F")
SEQUENTIAL = "cividis"
DIVERGING = "PuOr"


def new_figure(width: float, height: float, title: str) -> Figure:
    """An empty figure of width × height inches that needs no display."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(plain(title), fontsize=12)
    return figure


def plain(text: str) -> str:
    """A name as it is written: a `$` in it does not begin a formula."""
    return text.replace("$", r"\$")


def tidy(axes: Axes, title: str, x: str, y: str) -> None:
    """Title, axis labels and a light grid."""
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)


def epoch_axis(axes: Axes, epochs: list[int]) -> None:
    """Whole epochs only, at most about ten of them."""
    stride = -(-len(epochs) // 10)
    axes.set_xticks(epochs[::stride])
