"""Latents of sparse dictionaries before and after fine-tuning: what they read, for which label, what became of them."""

import altair as alt
import pandas as pd
import streamlit as st

from bertdyn.plots.feature_cards import KINDS, Example
from bertdyn.plots.layers import state_name
from bertdyn.plots.style import COLORS
from explorer import latents
from explorer.latents import COMPARISONS, NO_LATENT, Studied
from explorer.page import absent, code, run_of
from explorer.runs import Family
from explorer.tokens import coloured, plain, scale

ORDERS = {
    "says most of the label": lambda cards: _most(cards, "auc").sub(0.5).abs(),
    "changed most": lambda cards: cards["change"],
    "on most often": lambda cards: _most(cards, "density"),
    "strongest": lambda cards: _most(cards, "max"),
    "number": lambda cards: -cards["before"].where(cards["before"] >= 0, cards["after"]),
}
"""What the list can be sorted by → a number for each card, the largest first."""
SHOWN_FIRST = 1
"""Groups of examples that are unfolded."""
LABEL_HEIGHT, AXIS_HEIGHT = 26, 85
"""Of a bar of the label statistics, and of what is below the bars, pixels."""


def page(family: Family) -> None:
    """Draw the page."""
    run = run_of(family, "sae")
    if run is None:
        return
    found = latents.studied(run, family)
    if found is None:
        absent(run, "table of latents")
        return
    left, middle, right = st.columns(3)
    comparison = left.selectbox("Dictionaries", found.comparisons(), format_func=lambda c: f"{c}: {COMPARISONS[c]}")
    layer = middle.selectbox("Layer", found.values("layer", comparison))
    order = right.selectbox("Sort by", list(ORDERS))
    cards = latents.cards(found, comparison, layer)
    if cards.empty:
        st.info(f"The run shows no latents of layer {layer}: its features have no rows of single tokens.")
        return
    left, right = st.columns([1, 2])
    asked = left.text_input("Search", placeholder="word, label, fate or number").strip().lower()
    cards = _sorted(_searched(cards, asked), order)
    if cards.empty:
        st.info(f"Nothing is found for {code(asked)}.")
        return
    number = right.selectbox(
        f"Latent, {len(cards)} found", range(len(cards)), format_func=lambda i: _title(cards.iloc[i])
    )
    _card(found, comparison, layer, cards.iloc[number])
    with st.expander("The list as a table"):
        st.dataframe(cards.drop(columns=["seed_before", "seed_after"]), hide_index=True)


def _most(cards: pd.DataFrame, name: str) -> pd.Series:
    """Of both sides the larger."""
    there = [column for column in (f"{name}_before", f"{name}_after") if column in cards]
    return cards[there].max(axis="columns") if there else pd.Series(0.0, cards.index)


def _searched(cards: pd.DataFrame, asked: str) -> pd.DataFrame:
    """The cards in which all that is asked for occurs."""
    columns = [name for name in cards if name.startswith(("words_", "speaks_for_"))]
    texts = cards[["before", "after", "fate", *columns]].astype(str).agg(" ".join, axis="columns").str.lower()
    return cards[[all(word in text for word in asked.split()) for text in texts]]


def _sorted(cards: pd.DataFrame, order: str) -> pd.DataFrame:
    values = ORDERS[order](cards).sort_values(ascending=False, na_position="last", kind="stable")
    return cards.loc[values.index].reset_index(drop=True)


def _title(card: pd.Series) -> str:
    """A card in the list: numbers, fate, words."""
    numbers = list(dict.fromkeys(str(int(card[side])) for side in ("before", "after") if card[side] != NO_LATENT))
    words = card["words_after"] or card["words_before"]
    return " · ".join(filter(None, [" → ".join(numbers), card["fate"], words]))


def _card(found: Studied, comparison: str, layer: int, card: pd.Series) -> None:
    facts = [f"fate: **{card['fate']}**"] if card["fate"] else []
    facts += [f"cosine of its directions {card['cosine']:.2f}"] if pd.notna(card["cosine"]) else []
    facts += [f"activations changed by {card['change']:.2f} (0 to 1)"] if pd.notna(card["change"]) else []
    if facts:
        st.markdown(" · ".join(facts))
    full = float(_most(card.to_frame().T, "max").astype(float).iloc[0])
    st.html(scale(full))
    sides = ("before", "after")[: len(found.ends)]
    for column, state, side in zip(st.columns(len(sides)), found.ends, sides, strict=True):
        with column:
            st.subheader(state_name(state))
            if card[side] == NO_LATENT:
                st.info("No counterpart in this state.")
            else:
                _side(found, comparison, layer, state, card, side, full)


def _side(found: Studied, comparison: str, layer: int, state: str, card: pd.Series, side: str, full: float) -> None:
    latent, seed = int(card[side]), int(card[f"seed_{side}"])
    name = found.name(comparison, state, layer, seed)
    own = found.statistics(name).loc[latent]
    label = card.get(f"speaks_for_{side}", "")
    told = f"; says {code(label)} with AUC {own['auc']:.3f}" if label else ""
    st.markdown(
        f"latent **{latent}** of seed {seed}: on in {own['density']:.2%} of the tokens and {own['text_share']:.1%} of "
        f"the texts, at most {own['max']:.2f}{told}"
    )
    statistics = latents.label_statistics(found, name, latent)
    if statistics is not None and len(statistics):
        chart = _label_chart(statistics, _highest(found, comparison, layer, card))
        st.altair_chart(chart, height=LABEL_HEIGHT * len(statistics) + AXIS_HEIGHT)
    changed = latents.effects(found, name, latent)
    if changed:
        said = ", ".join(f"{code(label)} {change:+.3f}" for label, change in changed.items())
        st.caption(f"Logits when it is taken out, mean over its strongest texts: {said}")
    for number, (kind, shown) in enumerate(latents.examples(found, name, latent).items()):
        with st.expander(KINDS[kind], expanded=number < SHOWN_FIRST):
            st.html("<hr>".join(_example(example, full) for example in shown))


def _highest(found: Studied, comparison: str, layer: int, card: pd.Series) -> float:
    """The end of the axis that both sides share."""
    ends = zip(("before", "after"), found.ends, strict=False)
    names = [(found.name(comparison, state, layer, int(card[f"seed_{side}"])), int(card[side])) for side, state in ends]
    tables = [latents.label_statistics(found, name, latent) for name, latent in names if latent != NO_LATENT]
    return max((float((t["mean"] + t["std"].fillna(0)).max()) for t in tables if t is not None and len(t)), default=1.0)


def _label_chart(statistics: pd.DataFrame, highest: float) -> alt.LayerChart | alt.FacetChart:
    """Mean activation of a text by its label, with one standard deviation."""
    table = statistics.assign(
        low=(statistics["mean"] - statistics["std"]).clip(lower=0), high=statistics["mean"] + statistics["std"]
    )
    base = alt.Chart(table).encode(y=alt.Y("label:N", title=None))
    x = alt.X("mean:Q", title="mean activation of a text ± 1 standard deviation", scale=alt.Scale(domain=[0, highest]))
    tooltip = ["label", alt.Tooltip("mean:Q", format=".4f"), alt.Tooltip("std:Q", format=".4f"), "num_texts"]
    bars = base.mark_bar(color=COLORS[0], size=14).encode(x, tooltip=tooltip)
    spread = base.mark_rule(color="#444444", strokeWidth=1.5).encode(alt.X("low:Q"), alt.X2("high:Q"))
    return alt.layer(bars, spread)


def _example(example: Example, full: float) -> str:
    """One text, with what it is and what the model says of it."""
    said = f" → {plain(example.prediction)}" if example.prediction else ""
    head = f"<small>{example.activation:.2f} · {plain(example.label)}{said} · {plain(example.example_id)}</small>"
    before, after = "… " if example.cut_before else "", " …" if example.cut_after else ""
    return f"{head}<div>{before}{coloured(example.words, full)}{after}</div>"
