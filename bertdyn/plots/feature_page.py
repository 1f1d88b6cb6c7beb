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
from itertools import compress, groupby
from typing import Any, NamedTuple

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

LEVELS = 9
"""Shades of the colour of an activation, above none."""
BINS_HEIGHT = 36
"""Of a histogram, in its own units; its bins are 10 wide."""
MAX_PEAK_WORDS = 6
"""Words that stand for a latent in the list."""
AROUND = 30
"""Tokens that are shown on either side of the one of an example."""


class Piece(NamedTuple):
    """A token, as the original text has it."""

    text: str
    activation: float


class Word(NamedTuple):
    """Tokens that are read as one, without a gap."""

    pieces: Sequence[Piece]
    spaced: bool = True
    """Whether white space precedes it in the text."""
    peak: int = -1
    """Which piece is the token that the example is shown for; -1: none."""


class Example(NamedTuple):
    """A token where a latent is on, in its text."""

    example_id: str
    position: int
    """Of the token in the model's input."""
    activation: float
    label: str
    prediction: str | None
    """What the model says of the text; None: it has no trained head."""
    words: Sequence[Word]
    cut_before: bool = False
    """Whether the text has more than is shown."""
    cut_after: bool = False


class ExampleGroup(NamedTuple):
    """Examples that were chosen in one way."""

    name: str
    """"Strongest", "Strongest quarter", ..."""
    examples: Sequence[Example]


class Histogram(NamedTuple):
    """Counts in bins of equal width."""

    counts: Sequence[int]
    low: float
    high: float
    """Ends of the first and the last bin."""


class LabelStatistic(NamedTuple):
    """Mean activation of the texts of one label."""

    label: str
    mean: float
    std: float
    num_texts: int


class Effect(NamedTuple):
    """Change of one logit when the latent is ablated."""

    label: str
    change: float


class Neighbour(NamedTuple):
    """A latent of the other state that points the same way."""

    latent: int
    cosine: float
    dictionary: str = ""
    """Whose latent it is, as in `Side`."""


class Side(NamedTuple):
    """A latent in one state. What is not known is NaN or empty, and is left out or shown as a dash."""

    latent: int
    density: float
    """Share of tokens where it is on."""
    text_share: float
    """Share of texts."""
    mean_on: float
    max: float
    variance: float
    label: str
    """The class that it speaks for; "" for none."""
    auc: float
    difference: float
    """Of means of that class and the rest, standardised."""
    histogram: Histogram | None = None
    """Of the activations above 0. The sides of a card are read best with the same bins."""
    label_statistics: Sequence[LabelStatistic] = ()
    """All that are given are shown: of many labels a choice."""
    effects: Sequence[Effect] = ()
    groups: Sequence[ExampleGroup] = ()
    neighbours: Sequence[Neighbour] = ()
    dictionary: str = ""
    """Which one, where a state has several: "seed 1"; "" otherwise."""


class LatentCard(NamedTuple):
    """A latent, or a matched pair of two dictionaries, in both states."""

    fate: str
    """"kept", "rotated", "born", "died" have a sign of their own, other words a dot; "" for none."""
    cosine: float
    """Of its directions in the two states; NaN: not known."""
    norm_ratio: float
    change: float
    """How differently it is on in the same tokens, 0 to 1."""
    sides: Sequence[Side | None]
    """One for each state of the page; None where it has no counterpart."""
    note: str = ""
    absent: str = "No counterpart in this state."
    """What stands in the place of a side that is None."""


class Fact(NamedTuple):
    """A line of the header."""

    name: str
    value: str


class Metric(NamedTuple):
    """A row of the table of metrics."""

    name: str
    values: Sequence[float]
    """One for each column of the table."""
    meaning: str = ""


class Page(NamedTuple):
    """Everything that a page shows."""

    title: str
    states: Sequence[str]
    """What is to the left, and to the right; one state has the page to itself."""
    summary: Sequence[str]
    """What this is, in paragraphs."""
    facts: Sequence[Fact]
    """Run, model, layer, comparison, data set, ..."""
    metric_columns: Sequence[str]
    metrics: Sequence[Metric]
    caveats: Sequence[str]
    """What one must know to not read too much into it; the noise floor among it."""
    cards: Sequence[LatentCard]
    """In the order of the list."""
    densities: Sequence[Histogram] = ()
    """One for each state, of log10 density over all latents that are on at all; or none."""


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


def shown_example(
    tokens: pd.DataFrame, position: int, label: str, prediction: str | None = None, around: int = AROUND
) -> Example:
    """An example from the tokens of its text, as `sae.examples.example_tokens` gives them.

    Parameters
    ----------
    tokens
        Those of one text and latent, in order: example_id, position, segment, word_id, piece, char_start, char_end,
        is_special, activation. Special ones are left out, but for the one that is shown.
    position
        Of the token that the example is for.
    around
        So many tokens on either side are shown, whole words of them.
    """
    every = (_Token(*values) for values in zip(*(tokens[name].tolist() for name in _Token._fields), strict=True))
    found = [token for token in every if not token.is_special or token.position == position]
    groups = [list(group) for _, group in groupby(found, key=lambda token: (token.segment, token.word_id))]
    shown = [any(abs(token.position - position) <= around for token in group) for group in groups]
    words: list[Word] = []
    end: tuple[int, int] | None = None
    for group in compress(groups, shown):
        words.append(_word(group, position, spaced=end != (group[0].segment, group[0].char_start)))
        end = (group[0].segment, max(token.char_end for token in group))
    return Example(
        str(tokens["example_id"].iloc[0]),
        int(position),
        next(token.activation for token in found if token.position == position),
        label,
        prediction,
        words,
        cut_before=not shown[0],
        cut_after=not shown[-1],
    )


class _Token(NamedTuple):
    is_special: bool
    segment: int
    word_id: int
    position: int
    piece: str
    char_start: int
    char_end: int
    activation: float


def _word(tokens: Sequence[_Token], position: int, spaced: bool) -> Word:
    """The pieces of one word; tokens that share characters are one piece, as strong as the strongest of them."""
    pieces: list[Piece] = []
    peak = -1
    for token in tokens:
        if token.piece == "" and pieces:
            pieces[-1] = pieces[-1]._replace(activation=max(pieces[-1].activation, token.activation))
        else:
            pieces.append(Piece(token.piece, token.activation))
        if token.position == position:
            peak = len(pieces) - 1
    return Word(pieces, spaced, peak)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("bertdyn.plots", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
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


def _visible(value: Any) -> Any:
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
    return " · ".join(f"{_visible(piece.text)} {piece.activation:.2f}" for piece in word.pieces)


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
