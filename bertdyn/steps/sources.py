"""What a step takes from the run that it starts from: its data, its checkpoints."""

import dataclasses
from typing import Any, NamedTuple, TypeVar

from bertdyn.data.config import PARTS, DataConfig
from bertdyn.data.loading import load_data
from bertdyn.data.text_data import TextData
from bertdyn.errors import InputError
from bertdyn.steps.config import ExtractConfig, FineTuneConfig
from bertdyn.steps.lists import choices
from bertdyn.steps.prune_config import PruneConfig
from bertdyn.tracking.locations import CHECKPOINTS, load_run_config, load_run_json, require_source, run_folder

MODEL_STAGES = ("fine-tune", "prune")
LIMITS = {f"max_{part}_samples" for part in PARTS}
"""Options that make parts smaller; a step may take fewer examples than its source had."""


class State(NamedTuple):
    """One kept checkpoint of a run."""

    name: str
    """As it was asked for: `best`."""
    checkpoint: str
    """`epoch_003`"""
    location: str
    """What `from_pretrained` takes."""


Config = TypeVar("Config", bound=ExtractConfig | PruneConfig)


def with_source_data(config: Config) -> Config:
    """`config` with the data options of its source run, if it has one; its own limits on examples stay.

    Raises
    ------
    InputError
        If the source is no finished fine-tune or prune run, or `config` says something else about the data.
    """
    run_id = config.source_run_id
    if not run_id:
        return config
    source, defaults = _data_config(run_id), DataConfig()
    taken = {f.name: getattr(source, f.name) for f in dataclasses.fields(DataConfig) if f.name not in LIMITS}
    for name, value in taken.items():
        own = getattr(config, name)
        if own not in (value, getattr(defaults, name)):
            raise InputError(f"--{name} {own!r}: the texts are those of run {run_id}, with {value!r}; leave it out")
    return dataclasses.replace(config, **taken)


def within_source_limits(config: PruneConfig) -> PruneConfig:
    """`config` with the source run's limits on examples where it has none of its own.

    Raises
    ------
    InputError
        If it asks for more examples than its source had.
    """
    if not config.source_run_id:
        return config
    source, limits = _data_config(config.source_run_id), {}
    for name in LIMITS:
        own, most = getattr(config, name), getattr(source, name)
        if own is not None and most is not None and own > most:
            raise InputError(f"--{name} {own}: run {config.source_run_id} had {most}; accepted are at most so many")
        limits[name] = most if own is None else own
    return dataclasses.replace(config, **limits)


def load_source_data(run_id: str) -> TextData:
    """The data of a run, the very same.

    Raises
    ------
    InputError
        If they have changed since, or cannot be read any more.
    """
    data = load_data(_data_config(run_id))
    if data.fingerprint != load_run_json(run_id, "data.json")["fingerprint"]:
        raise InputError(f"the data of run {run_id} changed since it was made: {data.source}")
    return data


def _data_config(run_id: str) -> DataConfig:
    require_source(run_id, MODEL_STAGES)
    config = _fine_tune_config(run_id)
    return DataConfig(**{field.name: getattr(config, field.name) for field in dataclasses.fields(DataConfig)})


def label_of(config: ExtractConfig | PruneConfig) -> str:
    """What to call the model on its texts, in names and figures: `sst2-minilm-s0`."""
    if config.source_run_id:
        return _label(config.source_run_id)
    dataset, model = (str(name).rstrip("/").split("/")[-1] for name in (config.dataset, config.model_name_or_path))
    return f"{dataset}-{model}"


def _label(run_id: str) -> str:
    stored = load_run_config(run_id)
    if "criterion" not in stored:
        return _fine_tune_config(run_id).label()
    return label_of(_known(PruneConfig, stored)) + "-pruned"


def described(config: ExtractConfig) -> dict[str, str | int]:
    """Dataset, model and seed of an extract run, as columns of tables that several runs share."""
    if not config.source_run_id:
        return {"dataset": config.dataset, "model": str(config.model_name_or_path), "seed": -1}
    source = _fine_tune_config(config.source_run_id)
    kind = (source.embeddings or "") + (" from scratch" if source.from_scratch else "")
    kind += " pruned" if _label(config.source_run_id).endswith("-pruned") else ""
    model = " ".join([source.model_name_or_path, *kind.split()])
    return {"dataset": source.dataset, "model": model, "seed": source.seed}


def extract_config(run_id: str) -> ExtractConfig:
    """The options of an extract run.

    Raises
    ------
    InputError
        If they are those of another version.
    """
    stored = load_run_config(run_id)
    if set(stored) != {field.name for field in dataclasses.fields(ExtractConfig)}:
        raise InputError(f"run {run_id} was made by another version of bertdyn; extract anew")
    return ExtractConfig(**stored)


def tags_of(config: ExtractConfig | PruneConfig) -> dict[str, str]:
    """What a run that starts from another is searched by in MLflow."""
    if config.source_run_id:
        return _fine_tune_config(config.source_run_id).tags() | {"bertdyn.source_run_id": config.source_run_id}
    return {"bertdyn.model": str(config.model_name_or_path), "bertdyn.dataset": config.dataset}


def _fine_tune_config(run_id: str) -> FineTuneConfig:
    """The options of a fine-tune run; of a prune run, those of the run that its model came from, with its own data."""
    stored = load_run_config(run_id)
    if "criterion" not in stored:
        return _known(FineTuneConfig, stored)
    pruning = _known(PruneConfig, stored)
    data = {field.name: getattr(pruning, field.name) for field in dataclasses.fields(DataConfig)}
    if pruning.source_run_id:
        return dataclasses.replace(_fine_tune_config(pruning.source_run_id), **data)
    return FineTuneConfig(**data, model_name_or_path=str(pruning.model_name_or_path), seed=pruning.seed)


def _known(kind: type[Any], stored: dict[str, Any]) -> Any:
    """Options of one kind from those of a run, which another version may have made."""
    fields = {field.name for field in dataclasses.fields(kind)}
    return kind(**{name: value for name, value in stored.items() if name in fields})


def find_states(run_id: str, wanted: str, flag: str = "states") -> list[State]:
    """The checkpoints that `--states` (or another `flag`) asks for, in its order; 'all' in the order of time.

    Raises
    ------
    InputError
        If the run has no such state.
    """
    manifest = load_run_json(run_id, CHECKPOINTS)
    names, kept = manifest["states"], manifest["checkpoints"]
    per_epoch = manifest.get("updates_per_epoch", 0)

    def updates(checkpoint: str) -> int:
        kind, _, number = checkpoint.partition("_")
        return int(number) * (per_epoch if kind == "epoch" else 1)

    asked = choices(wanted, flag)
    if "all" in asked:
        pretrained = names["pretrained"]
        every = ["pretrained", *sorted((name for name in kept if name != pretrained), key=lambda n: (updates(n), n))]
        asked = [*every, *(name for name in asked if name != "all")]
    states = []
    for name in asked:
        checkpoint = names.get(name, name)
        if checkpoint not in kept:
            raise InputError(
                f"--{flag} {wanted!r}: run {run_id} has no state {name!r}; it has: {', '.join([*names, *kept])}"
                + (", or all" if flag == "states" else "")
            )
        location = str(run_folder(run_id, f"checkpoints/{checkpoint}"))
        states.append(State(name, checkpoint, location))
    return states
