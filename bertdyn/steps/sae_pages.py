"""Pages of features: which latents are shown, their examples, what they do to the logits, and the words around."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bertdyn.features.texts import texts_of
from bertdyn.files import replacing
from bertdyn.plots.feature_page import (
    Effect,
    ExampleGroup,
    Fact,
    Histogram,
    LabelStatistic,
    LatentCard,
    Metric,
    Neighbour,
    Page,
    Side,
    feature_page,
    shown_example,
)
from bertdyn.sae.dictionary import Dictionary
from bertdyn.sae.examples import example_tokens, latent_examples
from bertdyn.sae.fates import DIED
from bertdyn.sae.fidelity import latent_effects
from bertdyn.sae.latents import RANKINGS, activation_change, activation_histograms
from bertdyn.sae.matching import match
from bertdyn.steps.config import SaeConfig, choices
from bertdyn.steps.extract import load_state
from bertdyn.steps.extract_runs import ExtractRun, RunTexts
from bertdyn.steps.sae_latents import codes_of
from bertdyn.steps.sae_report import Studied
from bertdyn.steps.sae_rows import PartRows
from bertdyn.steps.sae_training import Name
from bertdyn.steps.sources import find_states
from bertdyn.tracking.tracker import Tracker

NUM_BINS = 24
NUM_NEIGHBOURS = 3
LEAST_ROWS = 8
"""Rows on which a latent must be on to be shown for how much it changed."""


class Reader(NamedTuple):
    """What runs the texts of the page through a classifier again."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sequences: Dataset
    """One row a text of the measured part, in order."""
    where: str
    """Of `sae.fidelity.WHERE`: which tokens the dictionary is of."""


class OneSide(NamedTuple):
    """One dictionary on the rows of one state."""

    name: Name
    dictionary: Dictionary
    rows: PartRows
    codes: scipy.sparse.csr_array
    features: pd.DataFrame
    """Its rows of `LatentTables.features`, by latent."""
    labels: pd.DataFrame
    """Likewise, of `LatentTables.labels`."""
    reader: Reader | None
    """None: the state has no trained head."""


class PageWords(NamedTuple):
    """What the page says besides latents."""

    title: str
    summary: Sequence[str]
    facts: Mapping[str, str]
    metrics: Mapping[tuple[str, str], Sequence[float]]
    """(name, what it is) → before, after."""
    caveats: Sequence[str]


def make_page(
    before: OneSide, after: OneSide, fates: pd.DataFrame, label_names: Sequence[str], words: PageWords, num_latents: int
) -> tuple[str, pd.DataFrame]:
    """One page of a pair of dictionaries (or of one dictionary on two states).

    Parameters
    ----------
    fates
        Those of this comparison, layer and seed, in the later state.
    label_names
        By class id; empty where texts have no classes.

    Returns
    -------
    html
    examples
        What is shown, by example id and position.
    """
    partner, cosine = _partners(before, after)
    change = _changes(before, after, partner)
    pairs = _chosen(before, after, partner, change, num_latents)
    sides = [
        _Sides(side, other, [pair[which] for pair in pairs if pair[which] >= 0], label_names)
        for which, (side, other) in enumerate(((before, after), (after, before)))
    ]
    fate_of = {(row.side, row.latent): row for row in fates.itertuples()}
    cards = []
    for left, right in pairs:
        shown = [sides[0].side(left) if left >= 0 else None, sides[1].side(right) if right >= 0 else None]
        fate = next(
            (
                fate_of[key]
                for key in (("both", left), ("before", left), ("after", right))
                if key[1] >= 0 and key in fate_of
            ),
            None,
        )
        both = left >= 0 and right >= 0
        strengths = [
            side.features["strength"].iloc[latent] if latent >= 0 else np.nan
            for side, latent in ((before, left), (after, right))
        ]
        cards.append(
            LatentCard(
                fate=str(fate.fate) if fate is not None else "",
                cosine=float(cosine[left]) if both else float("nan"),
                norm_ratio=float(strengths[1] / strengths[0]) if both and strengths[0] > 0 else float("nan"),
                change=float(change[left]) if left >= 0 else 1.0,
                sides=shown,
                note=_note(fate),
            )
        )
    page = Page(
        title=words.title,
        states=(before.name.state, after.name.state),
        summary=words.summary,
        facts=[Fact(name, value) for name, value in words.facts.items()],
        metric_columns=[before.name.state, after.name.state],
        metrics=[Metric(name, values, meaning) for (name, meaning), values in words.metrics.items()],
        caveats=words.caveats,
        cards=cards,
        densities=[_density_histogram(side) for side in (before, after)],
    )
    examples = pd.concat(
        [of.examples.assign(**of.key) for of in sides if len(of.examples)] or [pd.DataFrame()], ignore_index=True
    )
    return feature_page(page), examples


def _note(fate: object | None) -> str:
    if fate is None:
        return ""
    floor = getattr(fate, "floor_cosine", np.nan)
    return f"cosine without fine-tuning (floor): {floor:.2f}" if np.isfinite(floor) and floor < 1 else ""


def _partners(before: OneSide, after: OneSide) -> tuple[np.ndarray, np.ndarray]:
    """[latents of before]: partner in after or -1, and the cosine of the two."""
    first, second = before.dictionary.directions.numpy(), after.dictionary.directions.numpy()
    if before.name.comparison != "independent":
        return np.arange(len(first)), np.einsum("ij,ij->i", first.astype(np.float64), second)
    alive = [side.features["density"].to_numpy() > 0 for side in (before, after)]
    found = match(first, second, *alive)
    near = np.nan_to_num(found.cosine) >= DIED
    return np.where(near, found.partner, -1), found.cosine


def _changes(before: OneSide, after: OneSide, partner: np.ndarray) -> np.ndarray:
    """[latents of before], 0 to 1; 1 without a partner."""
    of_partner = after.codes.tocsc()[:, np.maximum(partner, 0)].tocsr()
    change = activation_change(before.codes, scipy.sparse.csr_array(of_partner))
    return np.where(partner < 0, 1.0, change)


def _chosen(
    before: OneSide, after: OneSide, partner: np.ndarray, change: np.ndarray, number: int
) -> list[tuple[int, int]]:
    """Pairs (latent before, latent after), -1 for none: the first ones of each ranking in turn."""
    least = LEAST_ROWS / before.codes.shape[0]
    left = np.concatenate([np.arange(len(partner)), np.full(_unmatched(after, partner).sum(), -1)])
    right = np.concatenate([partner, np.flatnonzero(_unmatched(after, partner))])
    columns = {}
    for column in set(RANKINGS.values()) - {"change"}:
        values = [
            np.where(latents >= 0, side.features[column].to_numpy()[np.maximum(latents, 0)], -np.inf)
            for side, latents in ((before, left), (after, right))
            if column in side.features
        ]
        if values:
            columns[column] = np.nan_to_num(np.max(values, axis=0), nan=-np.inf)
    changed = np.concatenate([change, np.ones(len(left) - len(change))])
    often = columns["density"] >= least
    columns["change"] = np.where(often, np.nan_to_num(changed, nan=-np.inf), -np.inf)
    if "auc" in columns:
        columns["auc"] = np.where(often, columns["auc"], -np.inf)
    orders = [
        np.argsort(-columns[name], kind="stable")
        for name in ("auc", "change", "variance", "density")
        if name in columns
    ]
    chosen = list(dict.fromkeys(np.stack(orders, axis=1).ravel().tolist()))
    alive = [pair for pair in chosen if columns["density"][pair] > 0]
    return [(int(left[pair]), int(right[pair])) for pair in alive[:number]]


def _unmatched(after: OneSide, partner: np.ndarray) -> np.ndarray:
    """[latents of after], bool: on somewhere, and nobody's partner."""
    free = after.features["density"].to_numpy() > 0
    free[partner[partner >= 0]] = False
    return free


def _density_histogram(side: OneSide) -> Histogram:
    density = side.features["density"].to_numpy()
    low = -np.ceil(np.log10(side.codes.shape[0]))
    counts, _ = np.histogram(np.log10(density[density > 0]), bins=NUM_BINS, range=(low, 0))
    return Histogram(counts.tolist(), float(low), 0.0)


class _Sides:
    """The shown latents of one side, all that is known of them."""

    def __init__(self, of: OneSide, other: OneSide, latents: Sequence[int], label_names: Sequence[str]) -> None:
        self.of, self.names = of, label_names
        self.key = {k: v for k, v in of.name._asdict().items() if k != "sparsity"}
        rows = of.rows
        by_id = rows.examples.set_index("example_id")
        ids = rows.examples["example_id"].to_numpy()[rows.text]
        first_row = rows.examples["first_row"].to_numpy()[rows.text]
        table = pd.DataFrame({"example_id": ids, "row": rows.numbers, "position": rows.numbers - first_row})
        self.examples = latent_examples(of.codes, table, latents)
        state, layer = of.name.state, of.name.layer
        tokens = example_tokens(rows.store, state, layer, of.dictionary, self.examples)
        self.tokens = dict(iter(tokens.groupby(["latent", "example_id"], sort=False)))
        self.labels = by_id["label"] if label_names else pd.Series(dtype=object)
        predicted = f"prediction_{state}"
        self.predictions = by_id[predicted] if of.reader is not None and predicted in by_id else None
        highest = np.maximum(of.features["max"].to_numpy(), 1e-12)
        self.histograms = activation_histograms(of.codes, highest, NUM_BINS)
        self.highest = highest
        self.by_label = dict(iter(of.labels.groupby("latent"))) if len(of.labels) else {}
        self.cosines = of.dictionary.directions[latents].numpy() @ other.dictionary.directions.numpy().T
        self.cosines[:, other.features["density"].to_numpy() == 0] = -np.inf
        self.at = {latent: number for number, latent in enumerate(latents)}
        self.effects = self._effects()

    def _effects(self) -> dict[int, np.ndarray]:
        """Latent → mean change of the logits on its strongest texts when it is taken out."""
        if self.of.reader is None or not len(self.examples):
            return {}
        reader = self.of.reader
        number = {example: at for at, example in enumerate(self.of.rows.examples["example_id"])}
        top = self.examples[self.examples["kind"] == "top"]
        texts = {int(latent): [number[i] for i in of["example_id"]] for latent, of in top.groupby("latent")}
        found = latent_effects(
            reader.model,
            self.of.dictionary,
            self.of.name.layer,
            texts,
            reader.sequences,
            reader.tokenizer,
            where=reader.where,
        )
        return dict(zip(found.latents.tolist(), -found.effects, strict=True))

    def side(self, latent: int) -> Side:
        row = self.of.features.iloc[latent]
        cosines = self.cosines[self.at[latent]]
        nearest = np.argsort(-cosines)[:NUM_NEIGHBOURS]
        has_label = "label" in row and row["label"] >= 0
        return Side(
            latent=latent,
            density=float(row["density"]),
            text_share=float(row["text_share"]),
            mean_on=float(row["mean_on"]),
            max=float(row["max"]),
            variance=float(row["variance"]),
            label=str(self.names[int(row["label"])]) if has_label else "",
            auc=float(row["auc"]) if has_label else float("nan"),
            difference=float(row["difference"]) if has_label else float("nan"),
            histogram=Histogram(self.histograms[latent].tolist(), 0.0, float(self.highest[latent])),
            label_statistics=[
                LabelStatistic(self.names[label], mean, std, int(count))
                for label, mean, std, count in self.by_label[latent][["label", "mean", "std", "num_texts"]].itertuples(
                    index=False
                )
            ]
            if latent in self.by_label
            else [],
            effects=[Effect(name, float(change)) for name, change in zip(self.names, self.effects[latent], strict=True)]
            if latent in self.effects
            else [],
            groups=self._groups(latent),
            neighbours=[Neighbour(int(n), float(cosines[n])) for n in nearest if np.isfinite(cosines[n])],
        )

    def _groups(self, latent: int) -> list[ExampleGroup]:
        own = self.examples[self.examples["latent"] == latent]
        groups = []
        for kind, of_kind in own.groupby("kind", sort=False):
            shown = [
                shown_example(
                    self.tokens[latent, row.example_id],
                    int(row.position),
                    self._label(self.labels, row.example_id),
                    None if self.predictions is None else self._label(self.predictions, row.example_id),
                )
                for row in of_kind.itertuples()
            ]
            groups.append(ExampleGroup(KINDS.get(str(kind), str(kind)), shown))
        return groups

    def _label(self, values: pd.Series, example_id: object) -> str:
        return str(self.names[int(values[example_id])]) if len(values) else ""


KINDS = {
    "top": "Strongest",
    "q4": "Strongest quarter of the tokens where it is on",
    "q3": "Third quarter",
    "q2": "Second quarter",
    "q1": "Weakest quarter",
}


def write_pages(
    config: SaeConfig,
    tracker: Tracker,
    run: ExtractRun,
    found: Studied,
    dictionaries: Mapping[Name, Dictionary],
    rows: PartRows,
    texts: RunTexts | None,
    readable: Sequence[str],
) -> tuple[pd.DataFrame, list[str]]:
    """One page a comparison and layer, of the first seed: first state | last state."""
    seed, ends = found.seeds[0], (found.states[0], found.states[-1])
    readers = {state: _reader(config, run, texts, state, rows) for state in ends if state in readable and texts}
    names, tables = [], []
    label_names = run.store.manifest.label_names if run.config.task == "classification" else []
    for comparison in choices(str(config.comparisons), "comparisons"):
        for layer in found.layers:
            sides = []
            for state in ends:
                name = Name(comparison, state, layer, seed, found.sparsity)
                key = {k: v for k, v in name._asdict().items() if k != "sparsity"}
                codes = codes_of(name, dictionaries[name], rows, ends[0])
                of, labels = (_of(table, key) for table in (found.latents.features, found.latents.labels))
                sides.append(OneSide(name, dictionaries[name], rows, codes, of, labels, readers.get(state)))
            fates = found.latents.fates
            if len(fates):
                fates = _of(fates, {"comparison": comparison, "layer": layer, "seed": seed, "state": ends[1]})
            words = _page_words(config, tracker, found, comparison, layer, ends)
            html, examples = make_page(sides[0], sides[1], fates, label_names, words, config.page_latents)
            path = f"pages/{comparison}_layer_{layer:02d}.html"
            with replacing(tracker.folder / path) as temporary:
                temporary.write_text(html, encoding="utf-8")
            tracker.publish(path)
            names.append(path)
            tables.append(examples)
    return pd.concat(tables, ignore_index=True), names


def _of(table: pd.DataFrame, key: Mapping[str, object]) -> pd.DataFrame:
    if table.empty:
        return table
    chosen = np.logical_and.reduce([table[name] == value for name, value in key.items()])
    return table[chosen].reset_index(drop=True)


def _reader(config: SaeConfig, run: ExtractRun, texts: RunTexts, state: str, rows: PartRows) -> Reader:
    chosen = texts_of(texts.data, texts.tokens, [config.part], {config.part: run.config.max_samples(config.part)})
    at = pd.Series(np.arange(len(chosen.examples)), index=chosen.examples["example_id"])
    sequences = chosen.sequences.select(at[rows.examples["example_id"]].to_numpy())
    location = find_states(str(run.config.source_run_id), state)[0]
    return Reader(load_state(run.config, location, texts.data).eval(), texts.tokenizer, sequences, config.rows)


WHAT = {
    "shared": "one dictionary for the rows of both states: the same latent left and right",
    "stagewise": "a dictionary trained on the first state and continued on the later ones: a latent keeps its number",
    "independent": "a dictionary for each state, latents matched by the angle of their directions",
}
FLOOR = {
    "shared": "Two halves of the texts of one state differ, too",
    "stagewise": "Latents turn as well when a dictionary is continued as long on the first state again",
    "independent": "Two seeds of one state do not find the same latents, either",
}


PAGE_METRICS = {
    "FVU, standardised": ("fvu_standardized", "share of variance not explained, all dimensions alike"),
    "FVU": ("fvu", "the same, of rows as they are"),
    "L0": ("l0", "latents that are on in a row, mean"),
    "dead": ("dead_share", "share of latents that are on nowhere here"),
    "dense": ("dense_share", "share of latents that are on in more than a tenth of the rows"),
}


def _page_words(
    config: SaeConfig, tracker: Tracker, found: Studied, comparison: str, layer: int, ends: tuple[str, str]
) -> PageWords:
    errors = _of(
        found.errors,
        {
            "comparison": comparison,
            "layer": layer,
            "seed": found.seeds[0],
            "sparsity": found.sparsity,
            "rows": found.rows,
        },
    ).set_index("state")
    caveats = [
        "Strongest examples flatter a latent: most of what it is on for is in the quarters below.",
        "A latent is what one dictionary needed to reconstruct rows; another seed may cut them up differently.",
    ]
    shares = found.latents.shares
    if len(shares):
        of = _of(shares, {"comparison": comparison, "layer": layer, "state": ends[1]})
        words = ", ".join(
            f"{row.fate} {row.share:.1%} (floor {row.floor:.1%})"
            for row in of.itertuples()
            if row.side != "after" or row.fate == "born"
        )
        if words:
            caveats.insert(0, f"{FLOOR[comparison]}. In this layer: {words}.")
    return PageWords(
        title=f"Layer {layer} of {found.label}: {ends[0]} and {ends[1]}",
        summary=[f"Features of layer {layer}: {WHAT[comparison]}. Texts are of the part {found.part}."],
        facts={
            "run": str(tracker.run_id),
            "comparison": comparison,
            "layer": str(layer),
            "rows": found.rows,
            "dictionary": f"{config.activation}, {errors['num_latents'].iloc[0]:,} latents, seed {found.seeds[0]}",
        },
        metrics={
            (name, meaning): [float(errors.loc[state, column]) for state in ends]
            for name, (column, meaning) in PAGE_METRICS.items()
        },
        caveats=caveats,
    )
