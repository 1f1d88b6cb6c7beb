"""An extract run as the source of a step: its store, its states, what it is called."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from bertdyn.data.loading import load_data
from bertdyn.data.text_data import TextData
from bertdyn.data.tokenization import TokenizedParts, tokenize_parts, tokenizer_fingerprint
from bertdyn.errors import InputError
from bertdyn.features.store import FeatureStore
from bertdyn.files import cache_folder
from bertdyn.models.loading import load_tokenizer
from bertdyn.steps import sources
from bertdyn.steps.config import CompareConfig, ExtractConfig
from bertdyn.steps.extraction import STORE
from bertdyn.steps.lists import choices, layer_numbers
from bertdyn.steps.probe_config import ProbeConfig
from bertdyn.steps.sae_config import SaeConfig
from bertdyn.steps.sources import extract_config, find_states, label_of, load_source_data
from bertdyn.tracking.locations import require_source, resolve_model, run_folder


class ExtractRun(NamedTuple):
    """An extract run as a source."""

    run_id: str
    label: str
    """What it is called in tables and figures."""
    config: ExtractConfig
    store: FeatureStore
    states: list[str]
    """Those that were asked for, in that order."""


def open_extract_run(run_id: str, states: str, *, flag: str = "source_run_id") -> ExtractRun:
    """A finished extract run, its store checked.

    Parameters
    ----------
    states
        What `--states` says: names, or "all".
    flag
        The option that named the run, for the messages.

    Raises
    ------
    InputError
        If the run is no finished extract run, or has no such state.
    """
    require_source(run_id, ("extract",), flag=flag, complete=True)
    config = extract_config(run_id)
    store = FeatureStore.open(run_folder(run_id, STORE))
    chosen = store.states if states == "all" else choices(states, "states")
    for state in chosen:
        if state not in store.states:
            raise InputError(
                f"--states {states!r}: run {run_id} has no state {state!r}; it has {', '.join(store.states)}"
            )
    return ExtractRun(run_id, label_of(config), config, store, chosen)


def open_runs(config: CompareConfig | ProbeConfig | SaeConfig) -> list[ExtractRun]:
    """The extract runs that a step starts from, as `open_extract_run` has them; no two have one label.

    Raises
    ------
    InputError
        As `open_extract_run`.
    """
    ids, flag = [str(config.source_run_id)], "source_run_id"
    if isinstance(config, CompareConfig):
        ids, flag = config.runs, "run_ids" if config.run_ids else flag
    runs: list[ExtractRun] = []
    for run_id in ids:
        run = open_extract_run(run_id, config.states, flag=flag)
        if run.label in [other.label for other in runs]:
            mark = len(runs) + 1 if Path(run_id).is_dir() else run_id[:6]
            run = run._replace(label=f"{run.label} ({mark})")
        runs.append(run)
    return runs


def label_of_runs(runs: Sequence[ExtractRun]) -> str:
    """`sst2-minilm-s0`, `3-runs`"""
    return runs[0].label if len(runs) == 1 else f"{len(runs)}-runs"


def tags_of(runs: Sequence[ExtractRun]) -> dict[str, str]:
    """What a run that starts from these is searched by in MLflow."""
    tags = [sources.tags_of(run.config) for run in runs]
    joined = {name: ",".join(dict.fromkeys(tag[name] for tag in tags)) for name in ("bertdyn.model", "bertdyn.dataset")}
    return joined | {"bertdyn.source_run_id": ",".join(run.run_id for run in runs)}


def in_training_order(run: ExtractRun) -> list[str]:
    """The states of a run, if they stand in the order of training; each checkpoint once. Empty if they do not."""
    folders = {info.name: info.folder for info in run.store.manifest.states}
    states = list({folders[state]: state for state in reversed(run.states)}.values())[::-1]
    for kind in ("epoch", "step"):
        of_kind = [folders[state] for state in states if folders[state].startswith(f"{kind}_")]
        if of_kind != sorted(of_kind):  # their numbers have leading zeros
            return []
    return states


class RunTexts(NamedTuple):
    """What an extract run was made from, read again."""

    data: TextData
    tokenizer: PreTrainedTokenizerBase
    tokens: TokenizedParts
    """Part → tokenised rows."""
    location: str
    """What `from_pretrained` takes: the model of its first state."""


def load_run_texts(run: ExtractRun) -> RunTexts:
    """The data of an extract run, tokenised as it was.

    Raises
    ------
    InputError
        If its data or its model cannot be read any more, or are not those that its features were made from.
    """
    config = run.config
    if config.source_run_id:
        data = load_source_data(config.source_run_id)
        location = find_states(config.source_run_id, run.store.states[0])[0].location
    else:
        data, location = load_data(config), resolve_model(str(config.model_name_or_path))
    tokenizer = load_tokenizer(config.tokenizer_name or location, trust_remote_code=config.trust_remote_code)
    made_from = {"data": data.fingerprint, "tokenizer": tokenizer_fingerprint(tokenizer)}
    for what, fingerprint in run.store.manifest.fingerprints.items():
        if made_from.get(what) != fingerprint:
            raise InputError(f"run {run.run_id}: the {what} changed since its features were made; extract anew")
    tokens = tokenize_parts(data, tokenizer, config.max_length, cache_folder("tokens"), config.doc_stride)
    return RunTexts(data, tokenizer, tokens, location)


def chosen_layers(wanted: str, there: Sequence[int]) -> list[int]:
    """The layers that `--layers` asks for, of those that were extracted.

    Raises
    ------
    InputError
        If one was not extracted.
    """
    if wanted == "all":
        return list(there)
    numbers = layer_numbers(wanted, depth=max(there))
    missing = [layer for layer in numbers if layer not in there]
    if missing:
        raise InputError(
            f"--layers {wanted!r}: layer {missing[0]} was not extracted; there are {', '.join(map(str, there))}"
        )
    return numbers
