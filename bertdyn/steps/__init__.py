"""One function a step: the public API, used by entrypoints, sweeps and notebooks.

Every command of `MLproject` is a function of its options and a tracker. A `Tracker` keeps everything in a folder, and
wherever the options want a run, such a folder will do; with `bertdyn.tracking.runs.open_run` instead it is an MLflow
run, and the options take its id.

>>> from tempfile import mkdtemp
>>> from bertdyn.steps import (
...     CompareConfig, ExtractConfig, FineTuneConfig, ProbeConfig, PruneConfig, SaeConfig, Tracker,
...     compare, extract, fine_tune, probe, prune, sae,
... )
>>> folder = mkdtemp()
>>> tiny = "num_hidden_layers=2,hidden_size=32,num_attention_heads=2,intermediate_size=64"
>>> config = FineTuneConfig(from_scratch=True, config_overrides=tiny, max_train_samples=64, num_train_epochs=1)
>>> tuned = fine_tune(config, Tracker(f"{folder}/tuned"))
>>> tuned.best_epoch
1
>>> sorted(tuned.scores["state"].unique())
['best', 'none', 'pretrained']

Its states become a feature store, which further steps read:

>>> features = extract(ExtractConfig(source_run_id=f"{folder}/tuned"), Tracker(f"{folder}/features"))
>>> features.store.states
['pretrained', 'best']
>>> features.store.array("tokens", "best", 2).shape[1]
32
>>> compared = compare(CompareConfig(source_run_id=f"{folder}/features"), Tracker(f"{folder}/compared"))
>>> "cosine_mismatched" in set(compared.similarity["measure"])
True
>>> options = ProbeConfig(source_run_id=f"{folder}/features", num_folds=3, random_init=False, rows="mean")
>>> probed = probe(options, Tracker(f"{folder}/probed"))
>>> probed.probes["layer"].dropna().unique().tolist()
[0, 1, 2]
>>> options = SaeConfig(
...     source_run_id=f"{folder}/features", layers="1", width=32, k=4, seeds="0", num_train_epochs=1, random_init=False
... )
>>> sae(options, Tracker(f"{folder}/dictionaries")).features["layer"].unique().tolist()
[1]

And the model is pruned, by a budget of its encoder's FLOPs:

>>> options = PruneConfig(
...     source_run_id=f"{folder}/tuned", budget=0.7, calibration_examples=32, recover=False, controls="random",
...     latency_shapes="none", export_onnx=False,
... )
>>> pruned = prune(options, Tracker(f"{folder}/pruned"))
>>> sorted(set(pruned.scores["model"]))
['dense', 'pruned', 'random']
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers; `__getattr__` does it when the program runs
    from bertdyn.steps.comparison import compare
    from bertdyn.steps.config import CompareConfig, ExtractConfig, FineTuneConfig
    from bertdyn.steps.dictionaries import sae
    from bertdyn.steps.extraction import extract
    from bertdyn.steps.fine_tuning import fine_tune
    from bertdyn.steps.pipeline_config import PipelineConfig
    from bertdyn.steps.pipelines import pipeline
    from bertdyn.steps.probe_config import ProbeConfig
    from bertdyn.steps.probing import probe
    from bertdyn.steps.prune_config import PruneConfig
    from bertdyn.steps.pruning import prune
    from bertdyn.steps.pruning_seeds import prune_seeds
    from bertdyn.steps.sae_config import SaeConfig
    from bertdyn.steps.seeds import fine_tune_seeds
    from bertdyn.steps.sweep_config import SweepFreezingConfig, SweepPruningConfig
    from bertdyn.steps.sweeps import sweep_freezing, sweep_pruning
    from bertdyn.tracking.tracker import Tracker

__all__ = [
    "FineTuneConfig",
    "ExtractConfig",
    "CompareConfig",
    "ProbeConfig",
    "SaeConfig",
    "PruneConfig",
    "SweepPruningConfig",
    "SweepFreezingConfig",
    "PipelineConfig",
    "fine_tune",
    "fine_tune_seeds",
    "extract",
    "compare",
    "probe",
    "sae",
    "prune",
    "prune_seeds",
    "sweep_pruning",
    "sweep_freezing",
    "pipeline",
    "Tracker",
]
_WHERE = {
    "FineTuneConfig": "config",
    "ExtractConfig": "config",
    "CompareConfig": "config",
    "ProbeConfig": "probe_config",
    "SaeConfig": "sae_config",
    "PruneConfig": "prune_config",
    "SweepPruningConfig": "sweep_config",
    "SweepFreezingConfig": "sweep_config",
    "PipelineConfig": "pipeline_config",
    "fine_tune": "fine_tuning",
    "fine_tune_seeds": "seeds",
    "extract": "extraction",
    "compare": "comparison",
    "probe": "probing",
    "sae": "dictionaries",
    "prune": "pruning",
    "prune_seeds": "pruning_seeds",
    "sweep_pruning": "sweeps",
    "sweep_freezing": "sweeps",
    "pipeline": "pipelines",
    "Tracker": "bertdyn.tracking.tracker",
}
"""Name → its module."""


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    """Imported when it is asked for: options alone need neither torch nor MLflow."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    where = _WHERE[name]
    return getattr(importlib.import_module(where if "." in where else f"{__name__}.{where}"), name)
