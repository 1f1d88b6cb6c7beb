"""Pages of features, and the tables of what they show.

pairs of latents, the first ones of several rankings (sae_page_pairs) → their statistics, examples and effects
(sae_page_sides) → with words around them (sae_page_words) a page
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from bertdyn.features.texts import texts_of
from bertdyn.files import replacing
from bertdyn.plots.feature_cards import Fact, Histogram, LatentCard, Metric, Neighbour, Page, Side
from bertdyn.plots.feature_page import feature_page
from bertdyn.sae.dictionary import Dictionary
from bertdyn.sae.examples import text_tokens
from bertdyn.sae.naming import Name
from bertdyn.steps.extract_runs import ExtractRun, RunTexts
from bertdyn.steps.extraction import load_state
from bertdyn.steps.lists import choices
from bertdyn.steps.sae_config import SaeConfig
from bertdyn.steps.sae_latents import codes_of
from bertdyn.steps.sae_page_pairs import chosen, measured, pairs_of, right_seeds
from bertdyn.steps.sae_page_sides import NUM_BINS, OneSide, Other, Reader, neighbours, shown_latents, side_of
from bertdyn.steps.sae_page_words import absent_words, floor_note, page_words
from bertdyn.steps.sae_report import Studied
from bertdyn.steps.sae_rows import PartRows
from bertdyn.steps.sources import find_states
from bertdyn.tracking.tracker import Tracker


class Pages(NamedTuple):
    """What was written, and what stands in it."""

    examples: pd.DataFrame
    """One row an example: see `sae_page_sides.Shown.examples`."""
    latents: pd.DataFrame
    """One row a latent of a page: comparison, layer, state, seed, latent; partner, partner_seed (what stands beside
    it, -1: nothing) and change (`activation_change` of the two); nearest, nearest_seed, nearest_cosine (the latent of
    the other state that points most nearly the same way; of independent dictionaries one of another seed); and
    effect_<class>, the mean change of a logit on its strongest texts when it is taken out."""
    names: list[str]
    """Of the files."""


class _Source(NamedTuple):
    """What pages are made from."""

    found: Studied
    dictionaries: Mapping[Name, Dictionary]
    rows: PartRows
    tokens: pd.DataFrame
    """From `text_tokens`, of `rows.examples`."""
    readers: Mapping[str, Reader]
    """By state, where there is one."""
    label_names: Sequence[str]
    ends: Sequence[str]
    """The first and the last state, or the only one."""
    device: torch.device | str


def write_pages(
    config: SaeConfig,
    tracker: Tracker,
    run: ExtractRun,
    found: Studied,
    dictionaries: Mapping[Name, Dictionary],
    rows: PartRows,
    texts: RunTexts | None,
    readable: Sequence[str],
    *,
    device: torch.device | str = "cpu",
) -> Pages:
    """One page a comparison and layer: first state | last state.

    Parameters
    ----------
    found
        Everything but pages.
    dictionaries
        Of the main sparsity, of all seeds.
    rows
        Of tokens of the measured part.
    texts
        What the classifiers of `readable` states run on again.
    device
        Of dictionaries and classifiers.
    """
    ends = list(dict.fromkeys((found.states[0], found.states[-1])))
    readers = {
        state: _reader(config, run, texts, state, rows, device)
        for state in ends
        if texts is not None and state in readable
    }
    label_names = run.store.manifest.label_names if run.config.task == "classification" else []
    tokens = text_tokens(rows.store, rows.examples)
    source = _Source(found, dictionaries, rows, tokens, readers, label_names, ends, device)
    examples, latents, names = [], [], []
    for comparison in choices(str(config.comparisons), "comparisons"):
        for layer in found.layers:
            html, shown, table = _make_page(source, config, str(tracker.run_id), comparison, layer)
            path = f"pages/{comparison}_layer_{layer:02d}.html"
            with replacing(tracker.folder / path) as temporary:
                temporary.write_text(html, encoding="utf-8")
            tracker.publish(path)
            names.append(path)
            examples.append(shown)
            latents.append(table)
    return Pages(pd.concat(examples, ignore_index=True), pd.concat(latents, ignore_index=True), names)


def _reader(
    config: SaeConfig, run: ExtractRun, texts: RunTexts, state: str, rows: PartRows, device: torch.device | str
) -> Reader:
    parts = texts_of(texts.data, texts.tokens, [config.part], {config.part: run.config.max_samples(config.part)})
    at = pd.Series(np.arange(len(parts.examples)), index=parts.examples["example_id"])
    sequences = parts.sequences.select(at[rows.examples["example_id"]].to_numpy())
    location = find_states(str(run.config.source_run_id), state)[0]
    model = load_state(run.config, location, texts.data).eval()
    model.to(torch.device(device))
    return Reader(model, texts.tokenizer, sequences, config.rows)


def _make_page(
    source: _Source, config: SaeConfig, run_id: str, comparison: str, layer: int
) -> tuple[str, pd.DataFrame, pd.DataFrame]:
    """The page, its examples and its latents."""
    found, ends = source.found, source.ends
    name = Name(comparison, ends[0], layer, found.seeds[0], found.sparsity)
    later = right_seeds(comparison, found.seeds) if len(ends) > 1 else []
    before = _one_side(source, name)
    after = {seed: _one_side(source, name._replace(state=ends[1], seed=seed)) for seed in later}
    fates = _of(found.latents.fates, {**name.key, "state": ends[-1]})
    pairs = measured(pairs_of(before, after, fates, found.seeds), before, after)
    pairs = chosen(pairs, config.page_latents, before.codes.shape[0])
    sides, examples = _sides(source, before, after, pairs)
    header = [before, *after.values()][: len(ends)]
    words = page_words(found, config.activation, run_id, [side.name for side in header])
    page = Page(
        title=words.title,
        states=ends,
        summary=words.summary,
        facts=[Fact(*fact) for fact in words.facts.items()],
        metric_columns=ends,
        metrics=[Metric(name, values, meaning) for (name, meaning), values in words.metrics.items()],
        caveats=words.caveats,
        cards=_cards(pairs, sides, comparison, found.seeds, ends),
        densities=[_density_histogram(side) for side in header],
    )
    return feature_page(page), examples, _latent_table(name, pairs, sides, source)


def _one_side(source: _Source, name: Name) -> OneSide:
    dictionary = source.dictionaries[name].to(source.device)
    latents = source.found.latents
    return OneSide(
        name,
        dictionary,
        dictionary.directions.cpu().numpy(),
        codes_of(name, dictionary, source.rows, source.ends[0]),
        _of(latents.features, name.key),
        _of(latents.labels, name.key),
        source.readers.get(name.state),
    )


def _of(table: pd.DataFrame, key: Mapping[str, object]) -> pd.DataFrame:
    if table.empty:
        return table
    chosen = np.logical_and.reduce([table[name] == value for name, value in key.items()])
    return table[chosen].reset_index(drop=True)


def _sides(
    source: _Source, before: OneSide, after: Mapping[int, OneSide], pairs: pd.DataFrame
) -> tuple[list[list[Side | None]], pd.DataFrame]:
    """Left and right of each pair (left alone where there is one state), and the examples of all."""
    rows, tokens, names, ends = source.rows, source.tokens, source.label_names, source.ends
    left = shown_latents(before, rows, tokens, pairs.loc[pairs["left"] >= 0, "left"].tolist(), names)
    of_seed = {seed: pairs.loc[(pairs["right"] >= 0) & (pairs["right_seed"] == seed), "right"] for seed in after}
    right = {seed: shown_latents(side, rows, tokens, of_seed[seed].tolist(), names) for seed, side in after.items()}
    near = _others(source, before.name)
    sides: list[list[Side | None]] = []
    for pair in pairs.itertuples():
        one = other = None
        if pair.left >= 0:
            seed = _nearest_seed(before.name, pair.right_seed, source.found.seeds)
            one = side_of(left, pair.left, neighbours(before, pair.left, near.get((ends[-1], seed))))
        if pair.right >= 0:
            own = after[pair.right_seed]
            seed = _nearest_seed(own.name, before.name.seed if pair.left >= 0 else -1, source.found.seeds)
            other = side_of(right[pair.right_seed], pair.right, neighbours(own, pair.right, near.get((ends[0], seed))))
        sides.append([one, other][: len(ends)])
    return sides, pd.concat([left.examples, *(shown.examples for shown in right.values())], ignore_index=True)


def _nearest_seed(own: Name, partner_seed: int, seeds: Sequence[int]) -> int:
    """Among whose latents the nearest is looked for: the partner's, or another seed's; -1: nobody's."""
    if partner_seed >= 0:
        return partner_seed
    return next((seed for seed in seeds if seed != own.seed), -1)


def _others(source: _Source, name: Name) -> dict[tuple[str, int], Other]:
    """(state, seed) → where nearest latents are looked for; nothing where there is one state."""
    features = source.found.latents.features
    return {
        (of.state, of.seed): Other(of, made.directions.cpu().numpy(), _of(features, of.key)["density"].to_numpy() > 0)
        for of, made in source.dictionaries.items()
        if (of.comparison, of.layer) == (name.comparison, name.layer)
        if len(source.ends) > 1 and of.state in source.ends
    }


def _cards(
    pairs: pd.DataFrame, sides: Sequence[list[Side | None]], comparison: str, seeds: Sequence[int], ends: Sequence[str]
) -> list[LatentCard]:
    cards = []
    for pair, shown in zip(pairs.itertuples(), sides, strict=True):
        on_left = pair.left >= 0
        own, other = (ends[0], ends[-1]) if on_left else (ends[-1], ends[0])
        cards.append(
            LatentCard(
                fate=pair.fate,
                cosine=pair.cosine,
                norm_ratio=pair.norm_ratio,
                change=pair.change,
                sides=shown,
                note=floor_note(comparison, own, ends[0], pair.floor_cosine),
                absent=absent_words(seeds, pair.fate, other, on_left),
            )
        )
    return cards


def _latent_table(name: Name, pairs: pd.DataFrame, sides: Sequence[list[Side | None]], source: _Source) -> pd.DataFrame:
    """See `Pages.latents`."""
    seeds, found = source.found.seeds, []
    for pair, shown in zip(pairs.itertuples(), sides, strict=True):
        ids = ((pair.left, name.seed if pair.left >= 0 else -1), (pair.right, pair.right_seed))
        for number, (side, state) in enumerate(zip(shown, source.ends, strict=True)):
            if side is None:
                continue
            (_, seed), (partner, partner_seed) = ids[number], ids[1 - number]
            own = name._replace(state=state, seed=seed)
            nearest = side.neighbours[0] if side.neighbours else Neighbour(-1, float("nan"))
            found.append(
                {
                    **own.key,
                    "latent": side.latent,
                    "partner": partner,
                    "partner_seed": partner_seed,
                    "change": pair.change,
                    "nearest": nearest.latent,
                    "nearest_seed": _nearest_seed(own, partner_seed, seeds) if side.neighbours else -1,
                    "nearest_cosine": nearest.cosine,
                    **{f"effect_{effect.label}": effect.change for effect in side.effects},
                }
            )
    return pd.DataFrame(found)


def _density_histogram(side: OneSide) -> Histogram:
    density = side.features["density"].to_numpy()
    low = -np.ceil(np.log10(side.codes.shape[0]))
    counts, _ = np.histogram(np.log10(density[density > 0]), bins=NUM_BINS, range=(low, 0))
    return Histogram(counts.tolist(), float(low), 0.0)
