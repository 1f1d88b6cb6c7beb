"""Movie-review sentences from a seeded grammar: data for every command, without a file or a network.

The label is the writer's overall opinion, and it is decided by composition, not by words: the polarity of
an adjective is turned by negation ("anything but", "hardly"), the clause that counts is chosen by contrast
("although A, B" and "A, but B" both mean B), and other people's opinions and sad or happy plots are only
distractors. What can be learned is therefore visible layer by layer, and counting words is not enough: in the
report of a run on the default sizes (2,000 training and 1,000 test sentences) the row "TF-IDF + logistic
regression" shows a test accuracy of 0.633 with --data_seed 0 (0.618 with 1, 0.600 with 2; chance is 0.5).

A text may only appear in the part that its hash chooses, so the four parts are disjoint at any size, and the
first rows of a larger part are the smaller part.
"""

import hashlib
import random

import pandas as pd

LABEL_NAMES = ["negative", "positive"]
DEFAULT_SIZES = {"train": 2000, "validation": 200, "probe": 400, "test": 1000}
PARTS = list(DEFAULT_SIZES)


def _words(text: str) -> list[str]:
    return [" ".join(phrase.split()) for phrase in text.split(",")]


ASPECTS = _words(
    """acting, plot, script, direction, soundtrack, dialogue, ending, pacing, camera work, cast, lead
performance, editing, story, cinematography, humour, atmosphere, second half, opening act, final
hour, production design, screenplay, choreography, supporting cast, score, villain, main
character, animation, narration, set design, romance"""
)
ADJECTIVES = {
    True: _words(
        """brilliant, wonderful, superb, delightful, moving, gripping, charming, memorable, impressive,
excellent, enjoyable, clever, beautiful, fresh, touching, great, funny, masterful, engaging,
convincing, graceful, thrilling"""
    ),
    False: _words(
        """dull, awful, boring, clumsy, tedious, forgettable, dreadful, lifeless, shallow, weak, terrible,
predictable, messy, painful, stale, annoying, lazy, bland, pointless, silly, tiresome,
unconvincing"""
    ),
}
COPULAS = ["is", "was", "felt", "seemed", "proved"]
INTENSIFIERS = ["", "", "", "very", "really", "truly", "remarkably", "quite", "deeply", "so"]
NEGATIONS = ["not", "not at all", "hardly", "never", "anything but", "far from", "by no means"]
VERDICTS = {
    True: ["a masterpiece", "a triumph", "a gem", "a joy", "a classic", "a delight"],
    False: ["a disaster", "a mess", "a bore", "a failure", "a disgrace", "a waste of time"],
}
OTHERS = _words(
    """critics, my friends, most reviewers, the trailers, the posters, some bloggers, people at the
festival, my parents, the newspapers, two colleagues"""
)
SUBJECTS = {
    True: _words(
        """a happy wedding, two loving sisters, a joyful reunion, a beloved teacher, a lucky inventor, a
perfect summer, a kind old sailor, a winning football team"""
    ),
    False: _words(
        """a cruel murderer, a failing marriage, a terrible war, a bitter divorce, a lonely prisoner, a
deadly virus, a bankrupt farmer, a stupid robbery"""
    ),
}
FILMS = ["film", "movie", "picture", "drama", "comedy", "thriller"]

NEGATED_SHARE = 0.25
"""Share of clauses with a negation. At one half an adjective alone would say nothing at all."""


def _clause(rng: random.Random, positive: bool) -> str:
    """One opinion about one aspect, e.g. "the pacing was anything but very dull" (positive)."""
    negated = rng.random() < NEGATED_SHARE
    words = [
        "the",
        rng.choice(ASPECTS),
        rng.choice(COPULAS),
        rng.choice(NEGATIONS) if negated else "",
        rng.choice(INTENSIFIERS),
        rng.choice(ADJECTIVES[positive != negated]),
    ]
    return " ".join(word for word in words if word)


def _sentence(rng: random.Random, positive: bool) -> str:
    """One review whose writer's overall opinion is `positive`."""
    opinion = _clause(rng, positive)
    form = rng.randrange(6)
    if form == 0:
        return f"{opinion} ."
    if form == 1:
        return f"although {_clause(rng, not positive)} , {opinion} ."
    if form == 2:
        return f"{_clause(rng, not positive)} , but {opinion} ."
    if form == 3:
        return f"{opinion} , even though {_clause(rng, not positive)} ."
    if form == 4:
        verdict = rng.choice(VERDICTS[rng.random() < 0.5])
        return f"{rng.choice(OTHERS)} called it {verdict} , yet {opinion} ."
    return f"in this {rng.choice(FILMS)} about {rng.choice(SUBJECTS[rng.random() < 0.5])} , {opinion} ."


def _row(seed: int, part: str, number: int) -> tuple[str, int]:
    """(text, label) of one row: drawn again until the text belongs to `part`, about four times."""
    rng = random.Random(f"{seed}:{part}:{number}")
    label = rng.randrange(2)
    while True:
        text = _sentence(rng, positive=label == 1)
        if PARTS[hashlib.sha256(text.encode()).digest()[0] % len(PARTS)] == part:
            return text, label


def generate(num_examples: int, seed: int, part: str) -> pd.DataFrame:
    """The first `num_examples` distinct reviews of a part.

    Parameters
    ----------
    num_examples
        Number of rows; larger sizes begin with the smaller ones.
    seed
        Chooses the texts.
    part
        One of train, validation, probe, test; no text occurs in two parts.

    Returns
    -------
    reviews
        Columns example_id ("train-000000"), text and label (int64: 0 negative, 1 positive).
    """
    reviews: dict[str, int] = {}
    number = 0
    while len(reviews) < num_examples:
        reviews.setdefault(*_row(seed, part, number))
        number += 1
    return pd.DataFrame(
        {
            "example_id": [f"{part}-{row:06d}" for row in range(num_examples)],
            "text": list(reviews),
            "label": pd.Series(list(reviews.values()), dtype="int64"),
        }
    )
