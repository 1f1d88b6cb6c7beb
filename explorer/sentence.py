"""A typed text, before and after fine-tuning: its tokens coloured by features, layer by layer, and the prediction."""

from typing import TYPE_CHECKING, NamedTuple

import altair as alt
import pandas as pd
import streamlit as st

from bertdyn.plots.layers import state_name
from bertdyn.plots.style import COLORS
from bertdyn.sae.naming import Name
from bertdyn.tracking.locations import CHECKPOINTS
from explorer import artifacts, latents
from explorer.latents import COMPARISONS, Studied
from explorer.page import absent, code, run_of
from explorer.runs import Family, RunInfo
from explorer.tokens import coloured, scale

if TYPE_CHECKING:
    from explorer.models import Reader

EXAMPLE = "a gripping , unsentimental film that never finds its feet"
MAX_CHARACTERS = 2000
OFFERED = 15
"""Latents of a layer that can be chosen from."""
BAR_HEIGHT, AXIS_HEIGHT = 24, 75
"""Of a bar and of what is below the bars, pixels."""


class State(NamedTuple):
    """One state of the model that reads the text."""

    name: str
    location: str
    """As `--model_name_or_path` takes it."""


def page(family: Family) -> None:
    """Draw the page."""
    found = _studied(family)
    source = found.extract if found else next(iter(family.of("fine-tune")), None)
    if source is None:
        run_of(family, "fine-tune")
        return
    if not found and not artifacts.record(source, CHECKPOINTS):
        absent(source, "checkpoints")
        return
    states = _states(source, found.ends if found else ["pretrained", "best"])
    text = st.text_area("Text", EXAMPLE, max_chars=MAX_CHARACTERS, height=80).strip()
    if not text:
        st.info("Type a text.")
        return
    from explorer import models  # with PyTorch and transformers

    readers = [models.reader(state.location) for state in states]
    if all(reading.label_names for reading in readers):
        st.subheader("What the classifier says")
        _predictions(readers, states, text)
    else:
        st.info("This model classifies no texts: there is no prediction.")
    if found:
        _layers(found, readers, text)


def _studied(family: Family) -> Studied | None:
    """What dictionaries there are; says so where there are none."""
    run = run_of(family, "sae")
    if run is None:
        return None
    found = latents.studied(run, family)
    if found is None or found.rows == "mean":
        st.info("This sae run has no dictionary of tokens: only the prediction is shown.")
        return None
    return found


def _states(source: RunInfo, names: list[str]) -> list[State]:
    """The states of a fine-tune run, or of an extract run."""
    config = artifacts.record(source, "config.json")
    tuned = config.get("source_run_id") if source.stage == "extract" else source.run_id
    if not tuned:
        return [State(name, config["model_name_or_path"]) for name in names]
    return [State(name, f"runs:/{tuned}/checkpoints/{name}") for name in names]


def _predictions(readers: "list[Reader]", states: list[State], text: str) -> None:
    from explorer import models

    rows = [
        {"state": state_name(state.name), "label": label, "probability": value}
        for state, reading in zip(states, readers, strict=True)
        for label, value in zip(reading.label_names, models.probabilities(reading, text), strict=True)
    ]
    table = pd.DataFrame(rows)
    shown = [state_name(state.name) for state in states]
    color = alt.Color(
        "state:N", sort=shown, title=None, scale=alt.Scale(domain=shown, range=list(COLORS[: len(shown)]))
    )
    base = alt.Chart(table).encode(
        x=alt.X("probability:Q", scale=alt.Scale(domain=[0, 1])),
        y=alt.Y("label:N", title=None),
        yOffset=alt.YOffset("state:N", sort=shown),
    )
    bars = base.mark_bar().encode(color=color, tooltip=["state", "label", alt.Tooltip("probability:Q", format=".4f")])
    values = base.mark_text(align="left", dx=4, clip=False).encode(text=alt.Text("probability:Q", format=".2f"))
    st.altair_chart(alt.layer(bars, values), height=BAR_HEIGHT * len(table) + AXIS_HEIGHT)
    best = table.loc[table.groupby("state", sort=False)["probability"].idxmax()]
    st.markdown(" · ".join(f"{row.state}: **{row.probability:.1%}** {code(row.label)}" for row in best.itertuples()))
    if "pretrained" in [state.name for state in states]:
        st.caption("The head of the pretrained state has not been trained: what it says is chance.")


def _layers(found: Studied, readers: "list[Reader]", text: str) -> None:
    """Layer by layer, a chosen latent in each."""
    from explorer import models

    st.subheader("What features see, layer by layer")
    left, right = st.columns(2)
    comparison = left.selectbox("Dictionaries", found.comparisons(), format_func=lambda c: f"{c}: {COMPARISONS[c]}")
    seeds = found.values("seed", comparison)
    seed = right.selectbox("Seed", seeds) if len(seeds) > 1 else seeds[0]
    if found.rows != "content":
        st.caption("These dictionaries are of the first token; what they see in other tokens they were not made for.")
    for layer in found.values("layer", comparison):
        names = [found.name(comparison, state, layer, seed) for state in found.ends]
        tables = [models.read(reading, found.run, name, text) for reading, name in zip(readers, names, strict=True)]
        with st.container(border=True):
            st.markdown(f"**Layer {layer}**")
            _layer(found, names, tables, text)


def _layer(found: Studied, names: list[Name], tables: list[pd.DataFrame], text: str) -> None:
    """The text in each state; one latent where dictionaries share their numbers, else one of each."""
    from explorer import models

    peaks = [models.strongest(table) for table in tables]
    together = names[0].comparison != "independent" and len(names) > 1
    if together:
        both = pd.concat(peaks).groupby(level=0).max().sort_values(ascending=False)
        picked = _pick(found, names[-1], both, text)
        chosen = [picked] * len(names)
        columns = st.columns(len(names))
    else:
        columns = st.columns(len(names))
        chosen = []
        for column, name, peak in zip(columns, names, peaks, strict=True):
            with column:
                chosen.append(_pick(found, name, peak, text))
    full = max((float(peak.get(latent, 0.0)) for peak, latent in zip(peaks, chosen, strict=True)), default=0.0)
    for column, name, table, latent, peak in zip(columns, names, tables, chosen, peaks, strict=True):
        with column:
            strength = float(peak.get(latent, 0.0)) if latent is not None else 0.0
            st.caption(f"{state_name(name.state)}: latent {latent}, at most {strength:.2f}")
            st.html(coloured(models.words_of(table, -1 if latent is None else latent), full))
    if full > 0:
        st.html(scale(full))


def _pick(found: Studied, name: Name, peaks: pd.Series, text: str) -> int | None:
    """A latent out of those that are strongest in the text; each text begins with its strongest."""
    if peaks.empty:
        return None
    words, statistics = latents.words_by_latent(found, name), found.statistics(name)

    def told(latent: int) -> str:
        own = statistics.loc[latent]
        says = ""
        if "auc" in own and own["label"] >= 0:
            says = f"{found.label_names[int(own['label'])]} {own['auc']:.2f}"
        return " · ".join(filter(None, [f"{latent}: {peaks[latent]:.2f}", says, words.get(latent, "")]))

    offered = peaks.index[:OFFERED].tolist()
    return st.selectbox(
        "Latent: strength in this text · label and its AUC · words it is known by",
        offered,
        format_func=told,
        key=f"latent {'/'.join(map(str, name))} of {text}",
    )
