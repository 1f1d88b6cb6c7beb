"""Figures of one training."""

import numpy as np
import pandas as pd
import pytest

from bertdyn.plots.training import dynamics_heatmaps
from tests.plots.drawing import collisions

pytestmark = pytest.mark.filterwarnings("error")


def groups(spread):
    """Norms and updates by group and epoch, `spread` times as large at the end as at the start."""
    names = ["embeddings", *(f"layer_{layer:02d}" for layer in range(1, 7)), "pooler", "head"]
    rows = pd.DataFrame([(name, epoch) for epoch in range(4) for name in names], columns=["group", "epoch"])
    size = 0.1 * spread ** np.linspace(0, 1, len(rows))
    return rows.assign(norm=10 + size, distance_from_init=size, relative_update=size / 10, grad_norm_rms=size * 3)


@pytest.mark.parametrize("spread", [1.0, 1.008, 1.5, 30, 1e6])
def test_the_marks_of_a_colour_bar_can_be_told_apart(spread):
    figure = dynamics_heatmaps(groups(spread), "What moved")
    assert not collisions(figure)
    bars = [axes for axes in figure.axes if axes.get_label() == "<colorbar>"]
    assert len(bars) == 4
    for axes in bars:
        low, high = axes.get_ylim()
        marks = zip(axes.get_yticks(), (text.get_text() for text in axes.get_yticklabels()), strict=True)
        words = [word for place, word in marks if word and low <= place <= high]
        assert len(words) >= 2
        assert len(words) == len(set(words)), words
