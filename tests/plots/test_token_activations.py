import matplotlib
import numpy as np
import pandas as pd
import pytest

from bertdyn.plots.token_activations import CHARACTERS_A_LINE, COLORS, token_activations
from tests.plots.drawing import collisions

pytestmark = pytest.mark.filterwarnings("error")

PIECES = [
    ("[CLS]", -1, -1), ("Vin", 0, 0), ("Die", 1, 4), ("sel", 1, 7), ("'", 2, 10), ("s", 3, 11),
    ("$5", 4, 13), ("", 4, 13), ("\t", 5, 16), ("[SEP]", -1, -1),
]  # fmt: skip


def make_reading(pieces=PIECES, on=((7, 1, 0.4), (7, 3, 2.0), (7, 5, 1.0), (9, 6, 0.5), (9, 7, 1.5)), text=3):
    """`on`: latent, position, activation."""
    rows = [
        (text, position, word, piece, start, start + max(len(piece), 1) if start >= 0 else -1, start < 0)
        for position, (piece, word, start) in enumerate(pieces)
    ]
    columns = ["text", "position", "word_id", "piece", "char_start", "char_end", "is_special"]
    tokens = pd.DataFrame(rows, columns=columns)
    table = tokens.merge(pd.DataFrame(on, columns=["latent", "position", "activation"]), on="position", how="left")
    return table.fillna({"latent": -1, "activation": 0.0}).astype({"latent": int})


def words(axes):
    """What is written, from left to right in each line, without the values above the tokens."""
    found = [t for t in axes.texts if t.get_fontfamily() == ["monospace"]]
    return [t.get_text() for t in sorted(found, key=lambda t: (round(t.get_position()[1]), t.get_position()[0]))]


def test_tokens_are_coloured_by_activation_on_one_scale():
    figure = token_activations(make_reading(), 3, [9, 7, 8], "t")
    blocks = figure.axes[:3]
    assert [axes.get_title(loc="left") for axes in blocks] == [
        "latent 9, at most 1.50", "latent 7, at most 2.00", "latent 8, not on",
    ]  # fmt: skip
    for axes in blocks:
        assert words(axes) == ["[CLS]", "Vin", "Die", "sel", "'", "s", r"\$5", "\N{REPLACEMENT CHARACTER}", "[SEP]"]
    colors = matplotlib.colormaps[COLORS]
    of_nine, of_seven, of_eight = ({p.get_x(): p for p in axes.patches} for axes in blocks)
    # columns: [CLS] 0, Vin 6, Die 10, sel 13, ' 16, s 17, $5 19
    assert {x: p.get_facecolor() for x, p in of_seven.items()} == {
        x: colors(value / 2.0) for x, value in ((6, 0.4), (13, 2.0), (17, 1.0))
    }
    assert {x: p.get_facecolor() for x, p in of_nine.items()} == {19: colors(1.5 / 2)}  # of two tokens the stronger
    assert not of_eight
    outlined = [x for x, p in of_seven.items() if p.get_edgecolor() == (0, 0, 0, 1)]
    assert outlined == [13]
    assert [p.get_width() for p in of_seven.values()] == [3, 3, 1]


def test_long_texts_are_broken_between_words():
    rng = np.random.default_rng(0)
    pieces, start = [], 0
    for word in range(150):
        length = int(rng.integers(1, 12))
        pieces.append(("x" * length, word, start))
        pieces.append(("y" * 3, word, start + length))
        start += length + 4
    pieces.append(("z" * 300, 150, start))
    figure = token_activations(make_reading(pieces, [(7, 200, 1.0), (7, 300, 2.0)]), 3, [7], "t")
    [axes] = figure.axes[:1]
    assert len(words(axes)) == len(pieces)
    starts = {t.get_text(): t.get_position() for t in axes.texts}
    assert len({y for _, y in starts.values()}) > 3
    for text in axes.texts:
        (x, _), width = text.get_position(), len(text.get_text())
        assert x - width / 2 >= -1e-9
        assert x + width / 2 <= CHARACTERS_A_LINE + 1e-9
    whole = [(a, b) for a, b in zip(words(axes)[:-1:2], words(axes)[1::2], strict=True)]
    assert all(set(a) == {"x"} and b == "yyy" for a, b in whole)
    assert collisions(figure) == []


@pytest.mark.parametrize("latents", [[7], [7, 9, 8]])
def test_nothing_lies_on_anything_else(latents):
    assert collisions(token_activations(make_reading(), 3, latents, "t")) == []


def test_texts_without_activations():
    nothing = make_reading(on=[])
    for reading, text in ((nothing, 3), (nothing, 4)):
        figure = token_activations(reading, text, [0], "t")
        assert len(figure.axes) == 1
        assert not figure.axes[0].patches
