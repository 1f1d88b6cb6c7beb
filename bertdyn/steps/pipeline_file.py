"""The steps of a pipeline, read from a YAML file and checked before the first of them runs.

    title: what it is about
    steps:
      fine-tune: {num_train_epochs: 3}
      extract: {source_run_id: fine-tune, states: all}
      again: {step: extract, source_run_id: fine-tune, parts: test}
      compare: {run_ids: [extract, again]}

A step is called what it does, or says so under `step`. Its options are those of its command; where an option wants a
run, it gets the name of a step above (or the id of a run that is there).
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from bertdyn.errors import InputError
from bertdyn.steps.config import CompareConfig, ExtractConfig, FineTuneConfig
from bertdyn.steps.options import OptionParser
from bertdyn.steps.pipeline_config import PipelineConfig
from bertdyn.steps.probe_config import ProbeConfig
from bertdyn.steps.prune_config import PruneConfig
from bertdyn.steps.sae_config import SaeConfig
from bertdyn.steps.sources import MODEL_STAGES
from bertdyn.steps.sweep_config import SweepFreezingConfig, SweepPruningConfig

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
REFERENCES = ("source_run_id", "run_ids", "compare_run_id")
"""Options that want runs."""


class Kind(NamedTuple):
    """What a step can be."""

    config: type[Any]
    sources: tuple[str, ...]
    """Stages of the runs that it can start from."""


KINDS = {
    "fine-tune": Kind(FineTuneConfig, ()),
    "extract": Kind(ExtractConfig, MODEL_STAGES),
    "compare": Kind(CompareConfig, ("extract",)),
    "probe": Kind(ProbeConfig, ("extract",)),
    "sae": Kind(SaeConfig, ("extract",)),
    "prune": Kind(PruneConfig, MODEL_STAGES),
    "sweep-pruning": Kind(SweepPruningConfig, MODEL_STAGES),
    "sweep-freezing": Kind(SweepFreezingConfig, ()),
}


class Step(NamedTuple):
    """One step of a pipeline."""

    name: str
    stage: str
    """Of `KINDS`."""
    options: dict[str, Any]
    """Those that are given, as the step's configuration has them."""

    def sources(self, known: Mapping[str, Any]) -> list[str]:
        """The steps that it starts from, of those that are known."""
        words = [word for name in REFERENCES for word in str(self.options.get(name) or "").split(",")]
        return [word for word in words if word in known]

    def configure(self, runs: Mapping[str, str]) -> Any:
        """Its configuration, with the ids of runs for the names of steps.

        Raises
        ------
        InputError
            If an option is not accepted.
        """
        given = dict(self.options)
        for name in REFERENCES:
            if given.get(name):
                given[name] = ",".join(runs.get(word, word) for word in str(given[name]).split(","))
        return KINDS[self.stage].config(**given)


class Pipeline(NamedTuple):
    """A checked file."""

    name: str
    title: str
    steps: list[Step]


def load_pipeline(config: PipelineConfig) -> Pipeline:
    """The pipeline that the options name, with their changes.

    Raises
    ------
    InputError
        If the file cannot be read, or a step or one of its options is not accepted.
    """
    path = _path_of(config.preset)
    content = _yaml(path.read_text(encoding="utf-8"), f"--preset {config.preset!r}")
    if not isinstance(content, dict) or not isinstance(content.get("steps"), dict) or set(content) - {"title", "steps"}:
        raise InputError(f"--preset {config.preset!r}: accepted is a YAML mapping with a title and steps")
    overrides = _yaml(config.overrides, "--overrides") if config.overrides else {}
    if not isinstance(overrides, dict):
        raise InputError(f"--overrides {config.overrides!r}: accepted is '{{step: {{option: value}}}}'")
    for name in overrides:
        if name not in content["steps"]:
            raise InputError(f"--overrides: there is no step {name!r}; there are {', '.join(content['steps'])}")
    steps: dict[str, Step] = {}
    for name, given in content["steps"].items():
        steps[name] = _step(str(name), given or {}, overrides.get(name) or {}, config, steps)
    if not steps:
        raise InputError(f"--preset {config.preset!r}: there are no steps")
    return Pipeline(path.stem, str(content.get("title") or path.stem), list(steps.values()))


def _path_of(preset: str) -> Path:
    shipped = EXPERIMENTS / f"{preset}.yaml"
    path = shipped if shipped.exists() else Path(preset)
    if not path.is_file():
        names = ", ".join(sorted(path.stem for path in EXPERIMENTS.glob("*.yaml")))
        raise InputError(f"--preset {preset!r}: there is no such file; accepted are {names}, or a YAML file of steps")
    return path


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{where} is no YAML: {' '.join(str(error).split())}") from error


def _step(name: str, given: Any, overrides: Any, config: PipelineConfig, earlier: Mapping[str, Step]) -> Step:
    """One step, checked as its command would, with stand-ins for runs that are still to come."""
    if not isinstance(given, dict) or not isinstance(overrides, dict):
        raise InputError(f"step {name!r}: accepted is a mapping of options to values")
    stage = given.get("step", name)
    if stage not in KINDS:
        raise InputError(f"step {name!r}: {stage!r} is no step; accepted are {', '.join(KINDS)}")
    options = {option: value for option, value in (given | overrides).items() if option != "step"}
    try:
        options = _typed(stage, options) | _common(stage, options, config)
        step = Step(name, stage, options)
        for source in step.sources(earlier):
            if earlier[source].stage not in (*KINDS[stage].sources, "compare" if stage == "probe" else ""):
                raise InputError(f"{source!r} is a {earlier[source].stage}; {stage} starts from {KINDS[stage].sources}")
        step.configure({})
    except InputError as error:
        raise InputError(f"step {name!r}: {error}") from error
    return step


def _typed(stage: str, options: dict[str, Any]) -> dict[str, Any]:
    parser = OptionParser(KINDS[stage].config, allow_abbrev=False)  # type: ignore[arg-type]
    return parser.of_mapping(options)


def _common(stage: str, options: dict[str, Any], config: PipelineConfig) -> dict[str, Any]:
    """What the pipeline's own options say of a step that starts from no run."""
    if any(options.get(name) for name in REFERENCES):
        return {}
    known = {field.name for field in dataclasses.fields(KINDS[stage].config)}
    names = ("dataset", "data_dir", "model_name_or_path", "num_train_epochs", "max_train_samples", "max_test_samples")
    common = {name: getattr(config, name) for name in (*names, "seed")}
    return {name: value for name, value in common.items() if name in known and value is not None}
