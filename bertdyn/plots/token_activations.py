"""A text, its tokens coloured by how strongly latents are on: one block of lines a latent.

The table is what `sae.reading.read_text` returns.
"""

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from bertdyn.plots.style import new_figure, plain

COLORS = "YlOrBr"
"""From light to dark, unlike that of the heat maps: what is hardly on must look like what is not."""
CHARACTERS_A_LINE = 120
WIDTH = 11.5
LINE = 0.36
"""Height of a line, inches."""
FONT_SIZE = 10.4
VALUES_FROM = 0.5
"""Share of the largest activation from which on a value is written above its token."""


class Span(NamedTuple):
    """Characters that are drawn as one: a token, or several that share characters."""

    text: str
    """As the original text has them; of a special token its name."""
    column: int
    """Where it begins in its line, in characters."""
    line: int
    positions: list[int]
    """Of its tokens in the model's input."""
    is_special: bool


def token_activations(reading: pd.DataFrame, text: int, latents: Sequence[int], title: str) -> Figure:
    """One text with the activations of some latents, all on one scale, the strongest token of each outlined.

    Parameters
    ----------
    reading
        One row a token and latent that is on: text, position, word_id, piece, char_start, char_end, is_special, latent,
        activation. Pieces of a word are drawn without a gap, as in the original text.
    text
        Number of the text.
    latents
        Which ones, from top to bottom.
    """
    of_text = reading[reading["text"] == text]
    spans = _spans(of_text.drop_duplicates("position"))
    lines = 1 + max((span.line for span in spans), default=0)
    on = of_text[of_text["latent"].isin(latents)].set_index(["latent", "position"])["activation"]
    high = on.max() if len(on) else 1.0
    colors, scale = matplotlib.colormaps[COLORS], Normalize(0, high)
    figure = new_figure(WIDTH, max(1.6, 0.6 + (LINE * lines + 0.3) * len(latents)), title)
    blocks = figure.subplots(len(latents), 1, squeeze=False)[:, 0]
    for axes, latent in zip(blocks, latents, strict=True):
        by_position = on[latent].to_dict() if latent in on.index.get_level_values(0) else {}
        strengths = [max(by_position.get(position, 0.0) for position in span.positions) for span in spans]
        peak = max(strengths, default=0.0)
        name = f"latent {latent}, at most {peak:.2f}" if peak > 0 else f"latent {latent}, not on"
        axes.set_title(name, fontsize=9, loc="left")
        axes.set(xlim=(-0.5, CHARACTERS_A_LINE + 0.5), ylim=(lines, 0.1))
        axes.axis("off")
        for span, strength in zip(spans, strengths, strict=True):
            _draw(axes, span, strength, scale(strength), colors, is_peak=0 < strength == peak)
    if len(on):
        image = ScalarMappable(scale, colors)
        figure.colorbar(image, ax=blocks.tolist(), label="activation", aspect=25, fraction=0.03, pad=0.01)
    return figure


def _draw(axes: Axes, span: Span, strength: float, share: float, colors: Colormap, is_peak: bool) -> None:
    left, top, width = span.column, span.line + 0.4, len(span.text)
    if strength > 0:
        edge = "black" if is_peak else "none"
        axes.add_patch(
            Rectangle((left, top), width, 0.54, facecolor=colors(share), edgecolor=edge, linewidth=1.6, zorder=2)
        )
    ink = "#777777" if span.is_special else "black"
    if strength > 0:
        ink = "white" if share > 0.6 else "black"
    axes.text(
        left + width / 2,
        top + 0.27,
        plain(span.text),
        fontfamily="monospace",
        fontsize=FONT_SIZE,
        color=ink,
        ha="center",
        va="center_baseline",
        zorder=3,
    )
    if strength > 0 and (is_peak or (share >= VALUES_FROM and width >= 3)):
        axes.text(
            left + width / 2, top - 0.04, f"{strength:.1f}", fontsize=6.5, color="#444444", ha="center", va="bottom"
        )


def _spans(tokens: pd.DataFrame) -> list[Span]:
    """The tokens of one text in lines of `CHARACTERS_A_LINE`; a word is not broken unless it is longer than that."""
    words: list[list[tuple[str, list[int], bool]]] = []
    last, end = None, -1
    for token in tokens.itertuples():
        word = (token.is_special, token.word_id) if not token.is_special else token.position
        if token.piece == "" and words:  # shares the characters of the token before it
            words[-1][-1][1].append(token.position)
            continue
        piece = (_one_line(token.piece), [token.position], bool(token.is_special))
        glued = not token.is_special and last is not None and token.char_start <= end
        if glued or word == last:
            words[-1].append(piece)
        else:
            words.append([piece])
        last, end = word, token.char_end if not token.is_special else -1
    return _broken(words)


def _broken(words: list[list[tuple[str, list[int], bool]]]) -> list[Span]:
    spans, line, column = [], 0, 0
    for word in words:
        length = sum(len(text) for text, _, _ in word)
        if column and column + length > CHARACTERS_A_LINE:
            line, column = line + 1, 0
        for text, positions, is_special in word:
            if column and column + len(text) > CHARACTERS_A_LINE:
                line, column = line + 1, 0
            spans.append(Span(text[:CHARACTERS_A_LINE], column, line, positions, is_special))
            column += len(spans[-1].text)
        column += 1
    return spans


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
