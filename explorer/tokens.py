"""Words coloured by how strongly a feature is on, as HTML. Texts are of strangers: everything is escaped."""

from collections.abc import Sequence
from html import escape

import matplotlib
from matplotlib.colors import to_hex

from bertdyn.plots.feature_cards import Piece, Word
from bertdyn.plots.feature_page import visible
from bertdyn.plots.token_activations import COLORS

DARK_FROM = 0.6
"""Share of the full scale from which the background is dark and the ink white."""
BLOCK = "line-height:1.9;unicode-bidi:isolate;overflow-wrap:anywhere"


def coloured(words: Sequence[Word], full: float) -> str:
    """One block of text: the stronger, the darker; the token that it is shown for is outlined.

    Parameters
    ----------
    full
        The activation that has the full colour.
    """
    parts = []
    for word in words:
        pieces = [_piece(piece, full, number == word.peak) for number, piece in enumerate(word.pieces)]
        parts.append((" " if word.spaced else "") + "".join(pieces))
    return f'<div style="{BLOCK}">{"".join(parts).strip()}</div>'


def plain(text: str) -> str:
    """A text as HTML that shows what it is."""
    return escape(str(visible(text)))


def scale(full: float) -> str:
    """What the colours mean."""
    steps = " ".join(_piece(Piece(f"{share * full:.2g}", share * full), full, False) for share in (0.1, 0.4, 0.7, 1.0))
    return f'<div style="{BLOCK}"><small>activation: {steps}; outlined: the strongest</small></div>'


def _piece(piece: Piece, full: float, is_peak: bool) -> str:
    if not piece.activation > 0 and not is_peak:
        return plain(piece.text)
    share = min(1.0, piece.activation / full) if full > 0 else 1.0
    back, ink = to_hex(matplotlib.colormaps[COLORS](share)), "#fff" if share > DARK_FROM else "#1b1f24"
    outline = ";outline:2px solid #1b1f24" if is_peak else ""
    style = f"background:{back};color:{ink};border-radius:2px;padding:0 1px{outline}"
    return f'<span style="{style}" title="{piece.activation:.2f}">{plain(piece.text)}</span>'
