"""A probe run in words: where the information is, how sure that is, and beside what."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from bertdyn.plots.probe_panels import ROWS
from bertdyn.probing.stages import Stages
from bertdyn.steps.probe_tables import Probe

MAIN = ("accuracy", "r2")
CONVERGENCE = ("within_text_cosine", "within_text_variance_normalised", "effective_rank", "iso_score",
               "random_pair_cosine", "total_variance_normalised", "norm_q50",
               "cosine", "cosine_centered", "cka", "procrustes", "knn_overlap")  # fmt: skip
"""Measures of a compare run that are shown beside accuracy: those that know no labels. The table has all of them."""
SYSTEM_2 = "within_text_cosine (content)"
"""The convergence of tokens whose relation to accuracy was looked at, and never measured."""
SIGNIFICANT = 0.05
MAX_STATES = 4
"""In words and tables; beyond, the first and the last."""


class Probed(NamedTuple):
    """Everything that was found of one extract run."""

    label: str
    states: list[str]
    layers: list[int]
    num_texts: int
    part: str
    probes: pd.DataFrame
    paired: pd.DataFrame
    transfer: pd.DataFrame
    stages: dict[Probe, Stages]
    """Change points; empty with too few states."""
    stage_states: list[str]
    """The states that they are numbers of."""
    association: pd.DataFrame


def report_lines(found: Probed) -> Iterator[str]:
    """The page, line by line, but for the files."""
    probes = found.probes
    yield f"## What the layers of `{found.label}` know"
    yield ""
    yield (
        f"{found.num_texts:,} texts of the part `{found.part}`; brackets: 95 % over texts. Penalties were chosen by "
        "inner folds; no text is scored by a probe that has seen it. The best layer of a state is the best *on these "
        "texts*, of all that are shown; differences are paired, with a false discovery rate of 5 %."
        + ("" if 0 in found.layers else " Layer 0 was left out, and so is that baseline.")
    )
    own = probes[(probes["baseline"] == "none") & probes["metric"].isin(MAIN)]
    kinds = list(own[["target", "rows", "probe"]].drop_duplicates().itertuples(index=False, name=None))
    for target in dict.fromkeys(own["target"]):
        unit = "R²" if (own[own["target"] == target]["metric"] == "r2").any() else "accuracy"
        texts = probes[(probes["target"] == target) & probes["baseline"].isin(("majority", "tfidf"))]
        texts = texts[texts["metric"].isin(MAIN)].set_index("baseline")
        yield from ["", f"### {target} ({unit})", ""]
        yield (
            f"Without an encoder: {'the mean' if unit == 'R²' else 'majority class'} {_cell(texts.loc['majority'])}, "
            f"TF-IDF {_cell(texts.loc['tfidf'])}."
        )
        for kind in kinds:
            if kind[0] == target:
                yield from ["", f"**{ROWS[kind[1]]}, {kind[2]}**", "", *_words(found, *kind)]
    yield from _stage_lines(found)
    yield from _association_lines(found)
    # Tables last: a store takes only the beginning of a long page.
    yield from ["", "### By layer", ""]
    for kind in kinds:
        yield from ["", f"**{kind[0]}: {ROWS[kind[1]]}, {kind[2]}**", "", *_table(found, *kind)]
    yield from _transfer_lines(found)


def main_scores(probes: pd.DataFrame, target: str, rows: str, probe: str, baseline: str = "none") -> pd.DataFrame:
    """Accuracy or R² of one kind of probe, by layer and state."""
    return probes[
        (probes["target"] == target)
        & (probes["rows"] == rows)
        & (probes["probe"] == probe)
        & (probes["baseline"] == baseline)
        & probes["metric"].isin(MAIN)
    ]


def _shown_states(found: Probed) -> list[str]:
    return found.states if len(found.states) <= MAX_STATES else [found.states[0], found.states[-1]]


def _words(found: Probed, target: str, rows: str, probe: str) -> Iterator[str]:
    scores = main_scores(found.probes, target, rows, probe)
    paired = found.paired
    paired = paired[(paired["target"] == target) & (paired["rows"] == rows) & (paired["probe"] == probe)]
    for state in _shown_states(found):
        of_state = scores[scores["state"] == state].sort_values("layer")
        best = of_state.loc[of_state["value"].idxmax()]
        against = paired[paired["state_b"] == state]
        near = against[(against["kind"] == "best") & (against["q_value"] >= SIGNIFICANT)]["layer_a"]
        parts = [f"- `{state}`: best at layer {best['layer']}, {_cell(best)}"]
        if len(near):
            parts[0] += f" (not told apart from it: layer {', '.join(map(str, sorted(near)))})"
        for kind, name in (("random_init", "a random encoder's"), ("tfidf", "TF-IDF")):
            there = against[(against["kind"] == kind) & (against["layer_b"] == best["layer"])]
            if len(there):
                parts.append(f"{_difference(there.iloc[0])} {name}")
        first = against[against["kind"] == "states"]
        if len(first):
            for better, how in ((True, "better"), (False, "worse")):
                changed = [row["layer_b"] for _, row in first.iterrows() if _gain(row) is better]
                if changed:
                    parts.append(f"{how} than `{first['state_a'].iloc[0]}` at layer {', '.join(map(str, changed))}")
            if not any(_gain(row) is not None for _, row in first.iterrows()):
                parts.append(f"at no layer told apart from `{first['state_a'].iloc[0]}`")
        yield "; ".join(parts) + "."


def _gain(row: pd.Series) -> bool | None:
    """Whether the second of a pair is better; None where that is not known."""
    if not row["q_value"] < SIGNIFICANT:
        return None
    return bool((row["difference"] > 0) == (row["metric"] == "accuracy"))


def _difference(row: pd.Series) -> str:
    return {None: "not told apart from", True: "better than", False: "worse than"}[_gain(row)]


def _table(found: Probed, target: str, rows: str, probe: str) -> Iterator[str]:
    """A row a layer, a column a state and a control."""
    shown = _shown_states(found)
    scores = main_scores(found.probes, target, rows, probe)
    columns = {state: scores[scores["state"] == state] for state in shown}
    for baseline, name in (("random_init", "random encoder"), ("shuffled", "shuffled"), ("control", "control task")):
        table = main_scores(found.probes, target, rows, probe, baseline)
        if baseline != "random_init":
            table, name = table[table["state"] == shown[-1]], f"{shown[-1]}, {name}"
        if len(table):
            columns[name] = table
    code = found.probes[(found.probes["metric"] == "compression") & (found.probes["state"] == shown[-1]).fillna(False)]
    code = code[(code["target"] == target) & (code["rows"] == rows) & (code["probe"] == probe)]
    code = code[code["baseline"] == "none"]
    if len(code):
        columns[f"{shown[-1]}, compression"] = code
    yield "| layer | " + " | ".join(columns) + " |"
    yield "|---|" + "---|" * len(columns)
    for layer in found.layers:
        cells = [_cell(table[table["layer"] == layer].iloc[0]) for table in columns.values()]
        yield f"| {layer} | " + " | ".join(cells) + " |"


def _transfer_lines(found: Probed) -> Iterator[str]:
    """Does the direction of the first state's probe work in the last state?"""
    if found.transfer.empty:
        return
    first, last = found.states[0], found.states[-1]
    yield from ["", f"### Do directions survive from `{first}` to `{last}`?", ""]
    yield (
        "A probe of the first state on the last one's features, recentred, against the last state's own. Cosines of "
        "directions: between the states, and between two halves of the texts in the first."
    )
    for (target, rows, probe), table in found.transfer.groupby(["target", "rows", "probe"], sort=False):
        yield from ["", f"**{target}, {ROWS[str(rows)]}, {probe}**", ""]
        yield "| layer | own | carried over | carried over, recentred | cosine | cosine by chance |"
        yield "|---|---|---|---|---|---|"
        own = table[(table["fitted_on"] == last) & (table["scored_on"] == last)].set_index("layer")
        carried = table[(table["fitted_on"] == first) & (table["scored_on"] == last)].set_index("layer")
        for layer in carried.index:
            row = carried.loc[layer]
            cells = [
                _bounded(own.loc[layer], "accuracy"),
                _bounded(row, "accuracy"),
                _bounded(row, "accuracy_recentred"),
            ]
            cells += ["–" if np.isnan(row[name]) else f"{row[name]:.2f}" for name in ("cosine", "cosine_by_chance")]
            yield f"| {layer} | " + " | ".join(cells) + " |"


def _stage_lines(found: Probed) -> Iterator[str]:
    if found.stages:
        yield from ["", "### Stages of training", ""]
    for (target, rows, probe, _), stages in found.stages.items():
        name = f"{target}, {ROWS[rows]}, {probe}"
        points = [
            f"`{found.stage_states[point]}` (in {support:.0%} of resamples)"
            for point, support in zip(stages.change_points, stages.support, strict=True)
        ]
        drift = "; a straight line explains it as well, so these are no stages" if stages.drift else ""
        yield f"- {name}: " + (f"a new stage begins at {', '.join(points)}{drift}." if points else "no change point.")


def shown_associations(found: Probed) -> Iterator[tuple[str, str, str, pd.DataFrame]]:
    """(target, rows, probe, table): the main measures of the rows that were probed, and of the tokens of a text."""
    if found.association.empty:
        return
    for (target, rows, probe), table in found.association.groupby(["target", "rows", "probe"], sort=False):
        kinds = dict.fromkeys([str(rows), "content"])
        shown = [f"{name} ({kind})" for kind in kinds for name in CONVERGENCE]
        chosen = table[table["measure"].isin(shown)]
        if len(chosen):
            yield str(target), str(rows), str(probe), chosen


def _association_lines(found: Probed) -> Iterator[str]:
    """Whether tokens that converge go with accuracy, and which measures do with layer and state held."""
    shown = list(shown_associations(found))
    if not shown:
        return
    yield from ["", "### Does the geometry go with what probes find?", ""]
    yield (
        "Rank correlations over layers × states; brackets leave out one layer at a time. They are not corrected for "
        "the number of measures, and know only in part that neighbouring layers are alike and share each state: in "
        "simulations, 15 to 26 of 100 quantities that have nothing to do with accuracy had brackets without 0."
    )
    yield ""
    for target, rows, probe, table in shown:
        of_measure = table[table["measure"] == SYSTEM_2].set_index("coefficient")
        tokens = ", ".join(
            f"{words} {_correlation(of_measure.loc[name])}"
            for name, words in (("spearman", "Spearman"), ("partial_layer_state", "with layer and state held"))
            if name in of_measure.index
        )
        held = table[(table["coefficient"] == "partial_layer_state") & (table["low"] * table["high"] > 0)]
        held = held.sort_values("value", key=np.abs, ascending=False)
        named = "; ".join(f"{row['measure']} {_correlation(row)}" for _, row in held[:5].iterrows())
        yield (
            f"- {target}, {ROWS[rows]}, {probe}: cosine between the tokens of a text: {tokens or 'not measured'}. "
            f"With layer and state held, of {table['measure'].nunique()} measures: {named or 'none'}."
        )


def _correlation(row: pd.Series) -> str:
    return f"{row['value']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"


def _bounded(row: pd.Series, name: str) -> str:
    return f"{row[name]:.3f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]"


def _cell(row: Mapping[str, float]) -> str:
    if np.isnan(row["value"]):
        return "–"
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
