"""What a page of features holds: pure data, and examples from the tokens of their texts."""

from collections.abc import Sequence
from itertools import compress, groupby
from typing import NamedTuple

import pandas as pd

AROUND = 30
"""Tokens that are shown on either side of the one of an example."""
KINDS = {
    "top": "Strongest",
    "q4": "Strongest quarter of the tokens where it is on",
    "q3": "Third quarter",
    "q2": "Second quarter",
    "q1": "Weakest quarter",
}
"""What the kinds of examples (`sae.examples.latent_examples`) are called."""


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
