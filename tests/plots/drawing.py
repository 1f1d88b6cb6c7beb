"""What a reader sees of a figure, as data."""

from itertools import combinations

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text


def lines(axes):
    """Label → list of [points, 2]; lines without a label of their own follow the one before."""
    found, last = {}, ""
    for line in axes.get_lines():
        last = last if line.get_label().startswith("_") else line.get_label()
        found.setdefault(last, []).append(line.get_xydata())
    return found


def bands(axes):
    """[low, high] at each layer, one array a band."""
    found = []
    for band in axes.collections:
        points = band.get_paths()[0].vertices
        layers = np.unique(points[:, 0])
        found.append(
            np.array([(points[points[:, 0] == x, 1].min(), points[points[:, 0] == x, 1].max()) for x in layers])
        )
    return found


def panels(figure):
    """Title → axes, without the colour bars."""
    return {axes.get_title(): axes for axes in figure.axes if axes.get_title()}


def legend(figure):
    assert len(figure.legends) == 1
    return [text.get_text() for text in figure.legends[0].get_texts()]


def collisions(figure):
    """Panels, legend and title that lie on one another, texts of one axis that do, and what is cut off."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.get_layout_engine().execute(figure)  # what drawing does first, and all that moves anything
    boxes = {f"panel {i} {axes.get_title()}": axes.get_tightbbox(renderer) for i, axes in enumerate(figure.axes)}
    boxes |= {f"legend {i}": legend.get_window_extent(renderer) for i, legend in enumerate(figure.legends)}
    boxes["title"] = figure._suptitle.get_window_extent(renderer)
    found = [pair for pair in combinations(boxes, 2) if _overlap(boxes[pair[0]], boxes[pair[1]])]
    page = figure.bbox
    found += [
        ("cut off", name)
        for name, box in boxes.items()
        if box.x0 < page.x0 - 1 or box.y0 < page.y0 - 1 or box.x1 > page.x1 + 1 or box.y1 > page.y1 + 1
    ]
    for axes in figure.axes:
        upright = [t for t in [*axes.get_xticklabels(), *axes.texts] if t.get_rotation() in (0, 90) and t.get_text()]
        # of an annotation, the words alone
        words = [(t.get_text(), Text.get_window_extent(t, renderer)) for t in upright]
        found += [(a, b) for (a, box), (b, other) in combinations(words, 2) if _overlap(box, other, 0)]
    return found


def _overlap(a, b, slack=1):
    return min(a.x1, b.x1) - max(a.x0, b.x0) > slack and min(a.y1, b.y1) - max(a.y0, b.y0) > slack
