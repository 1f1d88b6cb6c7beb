"""A page of what the latents of a dictionary read, one state or two side by side: a file that needs nothing beside it.

The page is data in, HTML out. It opens where MLflow shows artifacts, in a frame without an origin of its own (no
storage, no downloads, links within the page only), and says by its content security policy that it loads nothing and
runs no script but its own. Reading needs no script; sorting and filtering the list do.

Texts are of strangers: everything is escaped by the template, control characters are shown as pictures, and what is
written from right to left stays in its place.
"""

import base64
import hashlib
import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from bertdyn.plots.feature_cards import Effect, Histogram, LatentCard, Page, Side, Word

LEVELS = 9
"""Shades of the colour of an activation, above none."""
BINS_HEIGHT = 36
"""Of a histogram, in its own units; its bins are 10 wide."""
MAX_PEAK_WORDS = 6
"""Words that stand for a latent in the list."""


def feature_page(page: Page) -> str:
    """The page as one HTML document, UTF-8.

    Parameters
    ----------
    page
        What it shows.

    Raises
    ------
    ValueError
        If a card does not have one side for each state, or there are more than two.
    """
    for card in page.cards:
        if len(card.sides) != len(page.states) or not any(card.sides):
            raise ValueError(f"a card of {len(card.sides)} sides, on a page of {len(page.states)} states")
    if not 1 <= len(page.states) <= 2:
        raise ValueError(f"a page of {len(page.states)} states: one or two have room on it")
    numbers = {
        (state, side.dictionary, side.latent): number
        for number, card in enumerate(page.cards, start=1)
        for state, side in enumerate(card.sides)
        if side is not None
    }
    return _environment().get_template("feature_page.html.jinja").render(page=page, numbers=numbers)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("bertdyn.plots", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=visible,
    )
    environment.filters |= {"number": _number, "percent": _percent, "sort_value": _sort_value, "sha256": _sha256}
    environment.globals |= {
        "LEVELS": LEVELS,
        "BINS_HEIGHT": BINS_HEIGHT,
        "bars": _bars,
        "full_scale": _full_scale,
        "level": _level,
        "largest_effect": _largest_effect,
        "most": _most,
        "name_of": _name_of,
        "peak_words": _peak_words,
        "runs": _runs,
        "values_by_side": _values_by_side,
        "values_of": _values_of,
    }
    return environment


# Control characters as their pictures; what changes the direction of everything behind it, and halves of characters,
# as what cannot be shown.
_PICTURES = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n\r"} | {0x7F: 0x2421}
_PICTURES |= dict.fromkeys([*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD)
_PICTURES |= dict.fromkeys([*range(0xD800, 0xE000), 0xFFFE, 0xFFFF], 0xFFFD)


def visible(value: Any) -> Any:
    """A text whose every character can be seen and moves no other; anything else as it is."""
    return value.translate(_PICTURES) if isinstance(value, str) else value


def _number(value: float, digits: int = 2) -> str:
    """With a sign of its own for minus; small and large ones by their power of ten."""
    if not math.isfinite(value):
        return "–"
    if value != 0 and not 10**-digits / 2 <= abs(value) < 1e5:
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e").replace("-", "−")
    return f"{value:,.{digits}f}".replace("-", "−")


def _percent(share: float) -> str:
    if not math.isfinite(share):
        return "–"
    return f"{share:.1%}" if share >= 0.01 or share == 0 else f"{100 * share:.2g}%"


def _sort_value(value: float) -> str:
    """What a script reads; nothing where there is no value."""
    return f"{float(value):.6g}" if math.isfinite(value) else ""


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _name_of(card: LatentCard) -> str:
    """The numbers of its latents; one where both sides are the same latent of the same dictionary."""
    named = dict.fromkeys((side.dictionary, side.latent) for side in card.sides if side is not None)
    return " → ".join(str(latent) for _, latent in named)


def _full_scale(card: LatentCard) -> float:
    """The activation that has the full colour on a card, on both sides."""
    return max((side.max for side in card.sides if side is not None and math.isfinite(side.max)), default=0.0)


def _level(activation: float, full: float) -> int:
    """0 where it is not on, else 1 to `LEVELS`."""
    if not activation > 0:
        return 0
    return min(LEVELS, max(1, math.ceil(LEVELS * activation / full))) if full > 0 else LEVELS


def _runs(words: Sequence[Word]) -> Iterator[tuple[str, Word | None]]:
    """Neighbouring words that are not on as one string each, and the others one by one with what precedes them."""
    plain = ""
    for word in words:
        plain += " " if word.spaced else ""
        if word.peak < 0 and not any(piece.activation > 0 for piece in word.pieces):
            plain += "".join(piece.text for piece in word.pieces)
            continue
        yield plain, word
        plain = ""
    yield plain, None


def _values_of(word: Word) -> str:
    """What the pieces of a word are worth, to be read when it is pointed at."""
    return " · ".join(f"{visible(piece.text)} {piece.activation:.2f}" for piece in word.pieces)


def _peak_words(side: Side) -> list[str]:
    """The words of the first group of examples, each once, the strongest first."""
    words = (word for group in side.groups[:1] for example in group.examples for word in example.words)
    peaks: dict[str, str] = {}
    for word in words:
        if word.peak >= 0:
            text = "".join(piece.text for piece in word.pieces)
            peaks.setdefault(text.lower(), text)
    return list(peaks.values())[:MAX_PEAK_WORDS]


def _bars(histogram: Histogram) -> str:
    """A path of bars 10 wide, the highest `BINS_HEIGHT` high; what is not 0 is at least a line."""
    highest = max(histogram.counts, default=0)
    if highest == 0:
        return ""
    heights = (max(1.0, BINS_HEIGHT * count / highest) if count else 0.0 for count in histogram.counts)
    return "".join(f"M{10 * i} {BINS_HEIGHT}v{-up:.3g}h9v{up:.3g}z" for i, up in enumerate(heights) if up)


def _most(card: LatentCard, of: str) -> float:
    """The end of an axis that both sides share: of "labels" mean + std, of "effects" the largest change."""
    sides = [side for side in card.sides if side is not None]
    if of == "effects":
        values = [abs(effect.change) for side in sides for effect in side.effects]
    else:
        values = [s.mean + (s.std if math.isfinite(s.std) else 0.0) for side in sides for s in side.label_statistics]
    return max((value for value in values if math.isfinite(value)), default=0.0) or 1.0


def _values_by_side(card: LatentCard, name: str) -> list[float]:
    return [math.nan if side is None else getattr(side, name) for side in card.sides]


def _largest_effect(side: Side) -> Effect | None:
    """The logit that ablation changes most."""
    known = [effect for effect in side.effects if math.isfinite(effect.change)]
    return max(known, key=lambda effect: abs(effect.change), default=None)
