"""The latents of a run's dictionaries: which stand side by side, what they are called by, and what they read.

Statistics come from the run's tables. Texts are coloured by what a dictionary makes of their rows in the feature store,
which is memory-mapped; PyTorch is loaded for it.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import streamlit as st

from bertdyn.errors import InputError
from bertdyn.plots.feature_cards import Example, shown_example
from bertdyn.sae.naming import Name
from explorer import artifacts
from explorer.runs import Family, RunInfo, load_run

# PyTorch takes seconds to import, and tables need none of it.
if TYPE_CHECKING:
    from bertdyn.sae.dictionary import Dictionary

COMPARISONS = {
    "shared": "one dictionary for all states",
    "stagewise": "trained on the first state, continued on the later ones",
    "independent": "a dictionary for each state",
}
MAX_DICTIONARIES = 64
"""Kept in memory."""
MAX_WORDS = 6
"""That a latent is called by."""
NO_LATENT = -1


class Studied(NamedTuple):
    """An sae run: what its tables hold of the dictionaries that pages can show."""

    run: RunInfo
    extract: RunInfo
    states: list[str]
    """In the order of training."""
    part: str
    """Of the texts that everything is measured and shown on."""
    rows: str
    """Of which tokens the dictionaries are: content, first or mean."""
    sparsity: float
    """Of the dictionaries whose latents are counted: k, or the L1 coefficient."""
    label_names: list[str]
    """The classes of the texts, by id; empty without."""
    features: pd.DataFrame
    """One row a latent of each dictionary."""

    @property
    def ends(self) -> list[str]:
        """The first and the last state, or the only one."""
        return list(dict.fromkeys((self.states[0], self.states[-1])))

    def comparisons(self) -> list[str]:
        """Those of `COMPARISONS` that there are."""
        return [name for name in COMPARISONS if name in set(self.features["comparison"])]

    def values(self, column: str, comparison: str) -> list[int]:
        """The layers, or seeds, of the dictionaries of a comparison."""
        return sorted(self.features.loc[self.features["comparison"] == comparison, column].unique().tolist())

    def name(self, comparison: str, state: str, layer: int, seed: int) -> Name:
        """A dictionary by what tells it from others."""
        return Name(comparison, state, layer, seed, self.sparsity)

    def statistics(self, name: Name) -> pd.DataFrame:
        """The statistics of one dictionary by latent, as the index."""
        return _of(self.features, name).set_index("latent")


def studied(run: RunInfo, family: Family) -> Studied | None:
    """What an sae run found; None if it has not got so far."""
    features = artifacts.table(run, "features")
    if features is None:
        return None
    features = features[features["comparison"].isin(list(COMPARISONS))]
    source = next(iter(run.sources), "")
    extract = next((one for one in family.runs if one.run_id == source), None) or load_run(source)
    config = artifacts.record(run, "config.json")
    return Studied(
        run=run,
        extract=extract,
        states=list(dict.fromkeys(features["state"])),
        part=config["part"],
        rows=config["rows"],
        sparsity=config["l1_coefficient"] if config["activation"] == "relu" else config["k"],
        label_names=artifacts.record(extract, "features/manifest.json").get("label_names", []),
        features=features,
    )


def _of(table: pd.DataFrame, name: Name) -> pd.DataFrame:
    """The rows of one dictionary."""
    return table[np.logical_and.reduce([table[column] == value for column, value in name.key.items()])]


def cards(found: Studied, comparison: str, layer: int) -> pd.DataFrame:
    """What the run's page of a comparison and layer shows, one row a card.

    Returns
    -------
    cards
        before, after (latents; -1: none), seed_before, seed_after, fate, cosine, change; density, max, auc, speaks_for
        and words of each side with the suffixes _before and _after.
    """
    shown = artifacts.table(found.run, "shown_latents")
    if shown is None:
        return pd.DataFrame()
    shown = shown[(shown["comparison"] == comparison) & (shown["layer"] == layer)]
    first, last = found.ends[0], found.ends[-1]
    left = shown[shown["state"] == first]
    table = pd.DataFrame(
        {
            "before": left["latent"],
            "seed_before": left["seed"],
            "after": left["partner"],
            "seed_after": left["partner_seed"],
            "change": left["change"],
        }
    )
    if last != first:
        alone = shown[(shown["state"] == last) & (shown["partner"] == NO_LATENT)]
        more = pd.DataFrame({"after": alone["latent"], "seed_after": alone["seed"], "change": np.nan})
        table = pd.concat([table, more.assign(before=NO_LATENT, seed_before=NO_LATENT)], ignore_index=True)
    table = table.assign(**_fates(found, comparison, layer, table))
    names = _words(found, comparison, layer)
    for side, state in (("before", first), ("after", last)):
        table = table.assign(**_statistics(found, comparison, layer, state, table[side], table[f"seed_{side}"], side))
        keys = zip(table[side], table[f"seed_{side}"], strict=True)
        table[f"words_{side}"] = [", ".join(names.get((state, int(seed), int(latent)), [])) for latent, seed in keys]
    return table


def _fates(found: Studied, comparison: str, layer: int, table: pd.DataFrame) -> dict[str, list]:
    """What became of each card's latent, where that can be told."""
    fates = artifacts.table(found.run, "fates")
    nothing: dict[str, list] = {"fate": [""] * len(table), "cosine": [np.nan] * len(table)}
    if fates is None:
        return nothing
    rows = fates[(fates["comparison"] == comparison) & (fates["layer"] == layer) & (fates["state"] == found.ends[-1])]
    known = {(row.side == "after", row.seed, row.latent): (row.fate, row.cosine) for row in rows.itertuples()}
    keys = [
        (True, card.seed_after, card.after) if card.before < 0 else (False, card.seed_before, card.before)
        for card in table.itertuples()
    ]
    told = [known.get(key, ("", np.nan)) for key in keys]
    return {"fate": [fate for fate, _ in told], "cosine": [cosine for _, cosine in told]}


def _statistics(
    found: Studied, comparison: str, layer: int, state: str, latents: pd.Series, seeds: pd.Series, side: str
) -> dict[str, list]:
    rows = found.features
    rows = rows[(rows["comparison"] == comparison) & (rows["layer"] == layer) & (rows["state"] == state)]
    columns = [name for name in ("density", "max", "auc", "label") if name in rows]
    of = rows.set_index(["seed", "latent"])[columns]
    own = of.reindex(pd.MultiIndex.from_arrays([seeds, latents]))
    statistics = {f"{name}_{side}": own[name].tolist() for name in columns if name != "label"}
    if "label" in columns:
        names = found.label_names
        statistics[f"speaks_for_{side}"] = [names[int(k)] if k >= 0 else "" for k in own["label"].fillna(-1)]
    return statistics


def label_statistics(found: Studied, name: Name, latent: int) -> pd.DataFrame | None:
    """label, mean, std, num_texts of the texts' mean activation; None where texts have no classes."""
    labels = artifacts.table(found.run, "feature_labels")
    if labels is None:
        return None
    own = _of(labels, name)
    own = own[own["latent"] == latent]
    return own[["mean", "std", "num_texts"]].assign(label=[found.label_names[int(label)] for label in own["label"]])


def effects(found: Studied, name: Name, latent: int) -> dict[str, float]:
    """Class → mean change of its logit on the strongest texts when the latent is taken out; empty if not known."""
    shown = artifacts.table(found.run, "shown_latents")
    if shown is None:
        return {}
    own = _of(shown, name)
    own = own[own["latent"] == latent].filter(like="effect_").dropna(axis="columns")
    return {} if own.empty else {column.removeprefix("effect_"): value for column, value in own.iloc[0].items()}


def examples(found: Studied, name: Name, latent: int) -> dict[str, list[Example]]:
    """Kind of example → texts, each token with the activation of the latent.

    Raises
    ------
    InputError
        If the features or the dictionary cannot be read any more.
    """
    shown = artifacts.table(found.run, "examples")
    if shown is None:
        return {}
    shown = _of(shown, name)
    shown = shown[shown["latent"] == latent]
    if shown.empty:
        return {}
    tokens = _example_tokens(found, name, shown)
    of_text = dict(iter(tokens.groupby("example_id", sort=False)))
    groups: dict[str, list[Example]] = {}
    for row in shown.itertuples():
        label, prediction = (value if isinstance(value, str) else "" for value in (row.label, row.prediction))
        example = shown_example(of_text[row.example_id], int(row.position), label, prediction or None)
        groups.setdefault(str(row.kind), []).append(example)
    return groups


@st.cache_resource(max_entries=MAX_DICTIONARIES, show_spinner=False)
def dictionary(run: RunInfo, name: Name) -> "Dictionary":
    """A dictionary of an sae run.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    from bertdyn.sae.export import load_dictionary

    return load_dictionary(artifacts.fetch(run, name.folder()))


def _example_tokens(found: Studied, name: Name, shown: pd.DataFrame) -> pd.DataFrame:
    from bertdyn.sae.examples import example_tokens

    store = artifacts.open_store(found.extract)
    if store is None:
        raise InputError(f"the extract run {found.extract.run_id} has no features any more")
    array = artifacts.store_array(found.extract, store, "tokens", name.state, name.layer)
    return example_tokens(array, dictionary(found.run, name), shown, *_texts(found.extract, found.part))


@st.cache_data(show_spinner="Reading the texts …")
def _texts(extract: RunInfo, part: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tokens of the texts of a part, and the texts."""
    from bertdyn.sae.examples import text_tokens

    store = artifacts.open_store(extract)
    if store is None:
        raise InputError(f"the extract run {extract.run_id} has no features any more")
    artifacts.fetch(extract, "features/tokens.parquet")
    texts = store.examples()
    texts = texts[texts["part"] == part]
    return text_tokens(store, texts), texts


def _words(found: Studied, comparison: str, layer: int) -> dict[tuple[str, int, int], list[str]]:
    """(state, seed, latent) → the words of its strongest tokens, the strongest first."""
    shown = artifacts.table(found.run, "examples")
    if shown is None:
        return {}
    top = shown[(shown["comparison"] == comparison) & (shown["layer"] == layer) & (shown["kind"] == "top")]
    words = _word_at(found.extract, found.part)
    found_words: dict[tuple[str, int, int], list[str]] = {}
    for row in top.itertuples():
        own = found_words.setdefault((row.state, int(row.seed), int(row.latent)), [])
        word = words[row.row]
        if word.lower() not in map(str.lower, own) and len(own) < MAX_WORDS:
            own.append(word)
    return found_words


@st.cache_data(show_spinner="Reading the texts …")
def _word_at(extract: RunInfo, part: str) -> dict[int, str]:
    """Row of the store → the word that its token is a part of."""
    from bertdyn.sae.examples import add_words

    tokens, texts = _texts(extract, part)
    columns = [name for name in ("text", "text_pair") if name in texts]
    by_id = dict(zip(texts["example_id"], texts[columns].itertuples(index=False, name=None), strict=True))
    worded = add_words(tokens, "example_id", by_id)
    return dict(zip(worded["row"], worded["word"], strict=True))


def words_by_latent(found: Studied, name: Name) -> dict[int, str]:
    """The words that the latents of a dictionary are called by; of those only that the run's pages show."""
    words = _words(found, name.comparison, name.layer)
    return {
        latent: ", ".join(own)
        for (state, seed, latent), own in words.items()
        if (state, seed) == (name.state, name.seed)
    }
