"""A sweep over freeze schedules: short trainings, the bad ones stopped early.

Texts, tokens and the task are there once a worker; every trial starts from the same weights.
"""

import dataclasses
from typing import Any

import optuna
from accelerate import Accelerator
from optuna import Study, Trial

from bertdyn.models.loading import load_config
from bertdyn.models.parts import PARTS, family_of
from bertdyn.steps.config import FineTuneConfig
from bertdyn.steps.fine_tuning import Job, assemble, evaluation, freeze_schedule, train_job
from bertdyn.steps.preparation import load_texts, make_accelerator, make_task
from bertdyn.steps.sweep_config import SweepFreezingConfig
from bertdyn.sweeping import studies
from bertdyn.sweeping.space import Number, Space, Switch, read_space
from bertdyn.sweeping.studies import Direction, check_data
from bertdyn.tracking.locations import resolve_model
from bertdyn.tracking.tracker import Tracker
from bertdyn.training.freezing import FreezeSchedule, Freezing, training_cost
from bertdyn.training.loop import AtEpochEnd, Progress
from bertdyn.training.progress_bar import ProgressBar

LOSS = "eval/loss"
NOTHING_FROZEN = {
    "freeze_layers": 0, "freeze_embeddings": False, "freeze_epochs": 0, "gradual_unfreezing": False,
    "layerwise_lr_decay": 1.0,
}  # fmt: skip


def space_of(config: SweepFreezingConfig) -> Space:
    """The space of the options, for the layers of the model that is trained.

    Raises
    ------
    InputError
        If there is no such model, or the space does not fit it.
    """
    model = load_config(resolve_model(config.model_name_or_path), **config.load_options())
    layers = len(PARTS[family_of(model)].layers(model))
    epochs = trial_config(config).num_train_epochs
    space = read_space(
        config.space_path,
        config.space_overrides,
        {
            "freeze_layers": Number(0, layers, whole=True, last=True),
            "freeze_embeddings": Switch(),
            "freeze_epochs": Number(0, epochs - 1, whole=True, last=True),
            "gradual_unfreezing": Switch(),
            "learning_rate": Number(0, float("inf"), above=True),
            "layerwise_lr_decay": Number(0, 1, above=True),
        },
    )
    # Not the learning rate: it is the controls' and the first trials'.
    space.check_free(config, NOTHING_FROZEN)
    return space


def trial_config(config: SweepFreezingConfig) -> FineTuneConfig:
    """The options of a trial's training."""
    epochs, samples = config.trial_epochs or config.num_train_epochs, config.trial_train_samples
    return config.training(
        num_train_epochs=epochs,
        max_train_samples=config.max_train_samples if samples is None else samples,
        early_stopping_patience=0,  # the pruner's
    )


def consistent(chosen: dict[str, Any], config: SweepFreezingConfig) -> dict[str, Any]:
    """Choices as options: without what cannot act, since nothing is frozen, or never to learn again."""
    found = {name: chosen.get(name, getattr(config, name)) for name in NOTHING_FROZEN} | chosen
    if not found["freeze_layers"] and not found["freeze_embeddings"]:
        found["freeze_epochs"] = 0
    if not found["freeze_epochs"]:
        found["gradual_unfreezing"] = False
    return found


def directions(config: SweepFreezingConfig) -> list[Direction]:
    """Of the values of a trial."""
    return ["minimize"]


def value_names(config: SweepFreezingConfig) -> list[str]:
    """What the values of a trial are."""
    return ["loss"]


def first_trials(config: SweepFreezingConfig, space: Space) -> dict[str, dict[str, Any]]:
    """What a person would try first: nothing frozen, everything, half of it, a warm-up of the head."""
    layers = space.kinds["freeze_layers"].high  # type: ignore[union-attr]
    rate = {"learning_rate": config.learning_rate}
    wanted: dict[str, dict[str, Any]] = {
        "nothing frozen": {},
        "all frozen": {"freeze_layers": layers, "freeze_embeddings": True},
        "lower half frozen": {"freeze_layers": layers // 2, "freeze_embeddings": True},
        "head first": {"freeze_layers": layers, "freeze_embeddings": True, "freeze_epochs": 1},
        "head first, then layer by layer": {
            "freeze_layers": layers, "freeze_embeddings": True, "freeze_epochs": 1, "gradual_unfreezing": True,
        },
    }  # fmt: skip
    found: dict[str, dict[str, Any]] = {}
    for origin, own in wanted.items():
        params = space.scatter(NOTHING_FROZEN | rate | own)
        if params is not None and params not in found.values():
            found[space.named(origin, NOTHING_FROZEN | rate | own, params)] = params
    return found


class FreezingTrials:
    """Everything that the trials of one worker share."""

    def __init__(self, config: SweepFreezingConfig, space: Space) -> None:
        self.config, self.space = config, space
        self.base = trial_config(config)
        accelerator = self.accelerator()
        self.texts = load_texts(self.base, accelerator)
        self.task = make_task(self.base, self.texts, accelerator.device)

    def accelerator(self) -> Accelerator:
        """A new one a trial: it holds on to every model that it prepares."""
        return make_accelerator(
            self.base.mixed_precision,
            gradient_accumulation_steps=self.base.gradient_accumulation_steps,
            with_frozen=True,
        )

    def __call__(self, trial: Trial, tracker: Tracker) -> float:
        config = dataclasses.replace(self.base, **consistent(self.space.suggest(trial), self.config))
        tracker.log_config(trial.params)
        job = assemble(config, tracker, tracker.folder, self.accelerator(), self.texts, self.task)
        schedule = freeze_schedule(config, job.model)
        layers = self.space.kinds["freeze_layers"].high  # type: ignore[union-attr]
        cost = training_cost(schedule, int(layers), self.config.num_train_epochs)  # of the winner's training
        tracker.log_metrics({"cost/training_flops": cost}, 0)
        studies.note(trial, training_flops=cost)
        if self.config.limit is not None:
            trial.set_constraint("training_flops", cost - self.config.limit)
            if cost > self.config.limit:
                raise optuna.TrialPruned("above the budget, which is known before any training")
        history = self.train(job, schedule, trial)
        best = min(history[1:], key=lambda metrics: metrics[LOSS])
        studies.note(trial, **{n: best[f"eval/{n}"] for n in ("accuracy", "macro_f1", "f1") if f"eval/{n}" in best})
        return best[LOSS]

    def train(self, job: Job, schedule: FreezeSchedule, trial: Trial) -> list[dict[str, float]]:
        """The metrics of each epoch; raises `TrialPruned` where `trial` does not promise."""

        def report(progress: Progress) -> None:
            if progress.epoch:
                trial.report(progress.metrics[LOSS], progress.epoch)
                if progress.epoch < job.config.num_train_epochs and trial.should_prune():
                    raise optuna.TrialPruned(f"after epoch {progress.epoch}")

        listeners = [
            Freezing(job.model, schedule),
            evaluation(job),
            AtEpochEnd(lambda progress: job.tracker.log_metrics(progress.metrics, progress.epoch)),
            ProgressBar(len(job.batches["train"]), job.config.num_train_epochs, (self.task.selection_metric,)),
            AtEpochEnd(report),
        ]
        return train_job(job, listeners).history


def objective(config: SweepFreezingConfig, space: Space, study: Study) -> FreezingTrials:
    """What a worker keeps between its trials."""
    trials = FreezingTrials(config, space)
    check_data(study, trials.texts.data.fingerprint)
    return trials


def prepare(config: SweepFreezingConfig, study: Study) -> None:
    """Nothing is measured beforehand."""
