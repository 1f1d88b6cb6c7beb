"""What a page shows of the latents of one dictionary: their statistics, their examples, what they do to the logits."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bertdyn.plots.feature_cards import (
    KINDS,
    Effect,
    ExampleGroup,
    Histogram,
    LabelStatistic,
    Neighbour,
    Side,
    shown_example,
)
from bertdyn.sae.dictionary import Dictionary
from bertdyn.sae.examples import example_tokens, latent_examples
from bertdyn.sae.fidelity import latent_effects
from bertdyn.sae.latents import activation_histograms
from bertdyn.sae.naming import Name
from bertdyn.steps.sae_rows import PartRows

NUM_BINS = 24
NUM_NEIGHBOURS = 3


class Reader(NamedTuple):
    """What runs the texts of the page through a classifier again."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sequences: Dataset
    """One row a text of the measured part, in order."""
    where: str
    """Of `sae.fidelity.WHERE`: which tokens the dictionary is of."""


class OneSide(NamedTuple):
    """One dictionary on the rows of its state."""

    name: Name
    dictionary: Dictionary
    directions: np.ndarray
    """[latents, width], of length 1"""
    codes: scipy.sparse.csr_array
    """[rows, latents]"""
    features: pd.DataFrame
    """Its rows of `LatentTables.features`, by latent."""
    labels: pd.DataFrame
    """Likewise, of `LatentTables.labels`."""
    reader: Reader | None
    """None: the state has no trained head."""


class Other(NamedTuple):
    """A dictionary among whose latents the nearest are looked for."""

    name: Name
    directions: np.ndarray
    """[latents, width], of length 1"""
    is_on: np.ndarray
    """[latents], bool: on in any row"""


class Shown(NamedTuple):
    """The shown latents of one side."""

    of: OneSide
    examples: pd.DataFrame
    """Of `latent_examples`, with the dictionary's comparison, state, layer and seed, and the names of label and
    prediction of each text; None where there is none."""
    tokens: Mapping[tuple[int, object], pd.DataFrame]
    """(latent, example id) → the tokens of that text."""
    effects: Mapping[int, np.ndarray]
    """Latent → mean change of the logits [classes] on its strongest texts when it is taken out."""
    histograms: np.ndarray
    """[latents, bins], of activations from 0 to the largest of each latent"""
    label_names: Sequence[str]
    """By class id; empty where texts have no classes."""


def shown_latents(
    of: OneSide, rows: PartRows, tokens: pd.DataFrame, latents: Sequence[int], label_names: Sequence[str]
) -> Shown:
    """Examples, tokens and effects of some latents.

    Parameters
    ----------
    rows
        Those of `of.codes`.
    tokens
        From `text_tokens`, of `rows.examples`.
    """
    texts = rows.examples
    owner = texts.iloc[rows.text]
    position = rows.numbers - owner["first_row"].to_numpy()
    table = pd.DataFrame({"example_id": owner["example_id"].to_numpy(), "row": rows.numbers, "position": position})
    examples = latent_examples(of.codes, table, latents)
    array = rows.store.array(rows.array, of.name.state, of.name.layer)
    found = example_tokens(array, of.dictionary, examples, tokens, texts)
    predicted = f"prediction_{of.name.state}" if of.reader is not None else ""
    named = {
        column: _names(examples["example_id"], texts, source, label_names)
        for column, source in (("label", "label"), ("prediction", predicted))
    }
    highest = _highest(of)
    return Shown(
        of,
        examples.assign(**named, **of.name.key),
        dict(iter(found.groupby(["latent", "example_id"], sort=False))),
        _effects(of, examples, texts),
        activation_histograms(of.codes, highest, NUM_BINS),
        label_names,
    )


def _names(ids: pd.Series, texts: pd.DataFrame, column: str, label_names: Sequence[str]) -> list[str | None]:
    """The name of the class that a column of `texts` has for each example."""
    if not label_names or column not in texts:
        return [None] * len(ids)
    classes = texts.set_index("example_id")[column]
    return [label_names[int(classes[example])] for example in ids]


def _highest(of: OneSide) -> np.ndarray:
    return np.maximum(of.features["max"].to_numpy(), 1e-12)  # a latent that is never on has bins, too


def _effects(of: OneSide, examples: pd.DataFrame, texts: pd.DataFrame) -> dict[int, np.ndarray]:
    """See `Shown.effects`."""
    if of.reader is None or not len(examples):
        return {}
    number = {example: at for at, example in enumerate(texts["example_id"])}
    top = examples[examples["kind"] == "top"]
    strongest = {int(latent): [number[i] for i in own["example_id"]] for latent, own in top.groupby("latent")}
    model, tokenizer, sequences, where = of.reader
    found = latent_effects(model, of.dictionary, of.name.layer, strongest, sequences, tokenizer, where=where)
    return dict(zip(found.latents.tolist(), -found.effects, strict=True))


def neighbours(of: OneSide, latent: int, other: Other | None) -> list[Neighbour]:
    """The latents of another dictionary, of those that are on anywhere, that point most nearly the same way."""
    if other is None:
        return []
    cosines = np.where(other.is_on, other.directions @ of.directions[latent], -np.inf)
    nearest = np.argsort(-cosines, kind="stable")[:NUM_NEIGHBOURS]
    called = dictionary_name(other.name)
    return [Neighbour(int(n), float(cosines[n]), called) for n in nearest if np.isfinite(cosines[n])]


def dictionary_name(name: Name) -> str:
    """What tells it from others of its state on a page."""
    return f"seed {name.seed}" if name.comparison == "independent" else ""


def side_of(shown: Shown, latent: int, near: Sequence[Neighbour]) -> Side:
    """One latent, ready for the page.

    Parameters
    ----------
    near
        From `neighbours`.
    """
    row = shown.of.features.iloc[latent]
    has_label = "label" in row and row["label"] >= 0
    names = shown.label_names
    return Side(
        latent=latent,
        density=float(row["density"]),
        text_share=float(row["text_share"]),
        mean_on=float(row["mean_on"]),
        max=float(row["max"]),
        variance=float(row["variance"]),
        label=names[int(row["label"])] if has_label else "",
        auc=float(row["auc"]) if has_label else float("nan"),
        difference=float(row["difference"]) if has_label else float("nan"),
        histogram=Histogram(shown.histograms[latent].tolist(), 0.0, float(_highest(shown.of)[latent])),
        label_statistics=_label_statistics(shown, latent),
        effects=[Effect(*pair) for pair in zip(names, shown.effects[latent].tolist(), strict=True)]
        if latent in shown.effects
        else [],
        groups=_groups(shown, latent),
        neighbours=near,
        dictionary=dictionary_name(shown.of.name),
    )


def _label_statistics(shown: Shown, latent: int) -> list[LabelStatistic]:
    labels = shown.of.labels
    own = labels[labels["latent"] == latent] if len(labels) else labels
    return [
        LabelStatistic(shown.label_names[row.label], row.mean, row.std, int(row.num_texts)) for row in own.itertuples()
    ]


def _groups(shown: Shown, latent: int) -> list[ExampleGroup]:
    own = shown.examples[shown.examples["latent"] == latent]
    return [
        ExampleGroup(
            KINDS[str(kind)],
            [
                shown_example(shown.tokens[latent, row.example_id], int(row.position), row.label or "", row.prediction)
                for row in of_kind.itertuples()
            ],
        )
        for kind, of_kind in own.groupby("kind", sort=False)
    ]
