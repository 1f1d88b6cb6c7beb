"""A sweep over pruning thresholds: plan → surgery → validation (→ short recovery), trial after trial.

Model, tokens, calibration statistics and the dense model's answers are there once a worker. System 4 loaded,
tokenised and tracked anew for every list of thresholds.
"""

import copy
import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import optuna
from accelerate.utils import set_seed
from optuna import Study, Trial
from transformers import PreTrainedModel

from bertdyn.data.batching import make_batches
from bertdyn.errors import InputError
from bertdyn.models.fingerprint import weights_fingerprint
from bertdyn.models.unpadded import is_unpadded
from bertdyn.pruning.agreement import Agreement, Referee
from bertdyn.pruning.budget import by_budget
from bertdyn.pruning.cost import Costs, flop_costs, latency_costs, parameter_costs
from bertdyn.pruning.latency_table import latency_table
from bertdyn.pruning.plan import Plan, identity
from bertdyn.pruning.scores import comparable
from bertdyn.pruning.search import Looked, apply, cut, look
from bertdyn.pruning.shape import shape_of
from bertdyn.pruning.targets import plan_maker
from bertdyn.steps.preparation import Texts, make_accelerator, without_padding
from bertdyn.steps.prune_config import PruneConfig
from bertdyn.steps.prune_source import calibrate, load_dense, open_source
from bertdyn.steps.recovery import Recovery, recover
from bertdyn.steps.sources import with_source_data, within_source_limits
from bertdyn.steps.sweep_config import SweepPruningConfig
from bertdyn.sweeping import studies
from bertdyn.sweeping.space import Space
from bertdyn.sweeping.studies import check_data
from bertdyn.tasks.task import Task
from bertdyn.tracking.tracker import Tracker
from bertdyn.training.loop import AtEpochEnd, Progress

LATENCY = "bertdyn.latency_table"
"""Attribute of a study: what was measured where it was begun, so that all machines count with the same."""


class PartScorer:
    """Scores models on one part, beside the dense one."""

    def __init__(self, part: str, config: PruneConfig, texts: Texts, task: Task, dense: PreTrainedModel) -> None:
        self.part, self.task, self.accelerator = part, task, make_accelerator(config.mixed_precision)
        loader = make_batches(
            texts.tokens[part],
            texts.tokenizer,
            config.per_device_eval_batch_size,
            shuffle=False,
            token_rows=is_unpadded(dense),
        )
        self.referee = Referee(dense, list(loader), task)
        self.loader = self.accelerator.prepare(loader)

    def look(self, model: PreTrainedModel, **options: Any) -> tuple[dict[str, float], Agreement]:
        """The task's metrics with kl and agreement, and the agreement of each text, from one pass."""
        predictions, agreement = self.referee.scored(self.accelerator, model, self.loader, self.part)
        metrics = self.task.metrics(predictions, self.part, **options)
        return metrics | {"kl": float(agreement.kl.mean()), "agreement": float(agreement.same.mean())}, agreement

    def __call__(self, model: PreTrainedModel) -> dict[str, float]:
        return self.look(model)[0]


class Cut(NamedTuple):
    """One pruned model."""

    model: PreTrainedModel
    plan: Plan
    cost: float
    """Share of the dense encoder's, of what `--budget_of` names."""


class PruningTrials:
    """Everything that the trials of one worker share.

    Parameters
    ----------
    table
        The study's latency table, where the cost is latency.
    """

    def __init__(self, config: SweepPruningConfig, space: Space, table: dict[str, Any] | None = None) -> None:
        self.config, self.space = config, space
        criteria = space.choices("criterion") or (config.criterion,)
        needs_reference = {"criterion": "state_change"} if "state_change" in criteria else {}
        self.base = within_source_limits(with_source_data(config.pruning(**needs_reference)))
        self.source = open_source(self.base)
        set_seed(config.seed)
        self.dense = load_dense(self.base, self.source)
        self.shape, self.fingerprint = shape_of(self.dense), weights_fingerprint(self.dense)
        self.calibration = calibrate(self.base, self.source, self.dense)
        # Statistics need the padding computed, everything else is faster without.
        self.teacher = without_padding(load_dense(self.base, self.source), self.base)
        self.costs = self._costs(table)
        self._looked: dict[bool, Looked] = {}

    def _costs(self, table: dict[str, Any] | None) -> Costs:
        if self.config.budget_of == "latency":
            assert table is not None
            tables = {
                kind: {int(units): seconds for units, seconds in of.items()} for kind, of in table["tables"].items()
            }
            return latency_costs(table["fixed"], tables)
        if self.config.budget_of == "parameters":
            return parameter_costs(self.shape)
        return flop_costs(self.shape, length=self.config.cost_length)

    @cached_property
    def validation(self) -> PartScorer:
        """The part that trials are compared on."""
        return PartScorer("validation", self.base, self.source.texts, self.source.task, self.teacher)

    @cached_property
    def recovery_texts(self) -> Texts:
        """The texts with as many training examples as a trial may use."""
        texts, wanted = self.source.texts, self.config.trial_train_samples
        if wanted is None or wanted >= len(texts.tokens["train"]):
            return texts
        tokens = copy.copy(texts.tokens)
        tokens["train"] = tokens["train"].shuffle(seed=self.config.seed).select(range(wanted))
        return texts._replace(tokens=tokens)

    def settings(self, chosen: dict[str, Any]) -> PruneConfig:
        """The options of one pruning with these choices; blocks that nothing is said of stay whole."""
        whole = dict.fromkeys(("attention_thresholds", "ffn_thresholds"), "0")
        named = {"criterion": self.config.criterion, "compensation": self.config.compensation}
        return dataclasses.replace(self.base, **whole | named | as_options(chosen))

    def looked(self, compensation: str) -> Looked:
        """The statistics of the dense model, of all compensations of one kind."""
        centred = compensation != "none"
        if centred not in self._looked:
            known = {compensation, *self.space.choices("compensation")}
            most = "least_squares" if known & {"least_squares", "auto"} and centred else compensation
            self._looked[centred] = look(self.dense, self.calibration, most)
        return self._looked[centred]

    def cut(self, settings: PruneConfig) -> Cut:
        """Plan and surgery by thresholds."""
        scores = self.looked(settings.compensation).scores(settings.criterion)
        plan = plan_maker(settings, self.shape, self.costs)(self.shape, scores, settings.criterion, 1.0)
        return self.cut_by(plan, settings)

    def cut_by(self, plan: Plan, settings: PruneConfig) -> Cut:
        """Surgery by a plan."""
        looked = self.looked(settings.compensation)
        if settings.compensation == "auto":
            model = apply(looked, plan, compensation="auto").model
        else:
            model = cut(looked, plan, settings.compensation)
        return Cut(without_padding(model, settings), plan, self.cost(plan))

    def cost(self, plan: Plan) -> float:
        """Share of the dense encoder's cost."""
        return self.costs.of(plan.result) / self.costs.of(self.shape)

    def uniform_within(self, cost: float, settings: PruneConfig) -> Plan:
        """The plan of the lowest uniform threshold (of all layers, heads and neurons alike) that costs at most so much.

        Raises
        ------
        ValueError
            If none does.
        """
        scores = self.looked(settings.compensation).scores(settings.criterion)
        if cost >= 1:
            return identity(self.shape)
        low, high, found = 0.0, 1.0, None
        for _ in range(20):
            middle = (low + high) / 2
            each = dataclasses.replace(
                settings, attention_thresholds=str(middle), ffn_thresholds=str(middle), threshold_kind="quantile"
            )
            plan = plan_maker(each, self.shape, self.costs)(self.shape, scores, each.criterion, 1.0)
            if self.cost(plan) <= cost:
                high, found = middle, plan
            else:
                low = middle
        if found is None:
            raise ValueError(f"no uniform threshold costs at most {cost}")
        return found

    def divided_within(self, cost: float, settings: PruneConfig) -> Plan:
        """The plan that `prune --budget` makes of this cost and criterion: exact, without trials."""
        scores = self.looked(settings.compensation).scores(settings.criterion)
        options = {"allow_empty": settings.allow_empty, "round_to": settings.round_to}
        return by_budget(self.shape, comparable(scores, settings.criterion), self.costs, cost, **options)  # type: ignore[arg-type]

    def __call__(self, trial: Trial, tracker: Tracker) -> float | tuple[float, ...]:
        chosen = self.space.suggest(trial)
        tracker.log_config(trial.params)
        settings = self.settings(chosen)
        try:
            made = self.cut(settings)
        except InputError as error:  # absolute thresholds that remove everything
            raise optuna.TrialPruned(str(error)) from error
        dataclasses.replace(made.plan, fingerprint=self.fingerprint).save(tracker.folder / "plan.json")
        tracker.publish("plan.json")
        costs = {f"cost/{self.config.budget_of}": made.cost}
        if self.config.budget_of != "parameters":
            whole = parameter_costs(self.shape)
            costs["cost/parameters"] = whole.of(made.plan.result) / whole.of(self.shape)
        tracker.log_metrics(costs, 0)
        studies.note(trial, cost=made.cost, parameters=costs["cost/parameters"])
        limit = self.config.limit if self.config.objective == "constrained" else None
        if limit is not None:
            trial.set_constraint("cost", made.cost - limit)
        infeasible = limit is not None and made.cost > limit
        if self.config.trial_epochs and not infeasible:
            metrics = self.recover(trial, tracker, made.model, settings)
        else:
            metrics = self.validation(made.model)
            tracker.log_metrics({f"eval/{name}": value for name, value in metrics.items()}, 0)
        studies.note(
            trial, **{name: metrics[name] for name in ("kl", "agreement", "accuracy", "f1") if name in metrics}
        )
        return (metrics["kl"], made.cost) if self.config.objective == "pareto" else self.value(metrics)

    def value(self, metrics: dict[str, float]) -> float:
        """What a constrained study is about."""
        if self.config.score == "kl":
            return metrics["kl"]
        return metrics["accuracy"] if "accuracy" in metrics else metrics["f1"]

    def recover(
        self, trial: Trial, tracker: Tracker, model: PreTrainedModel, settings: PruneConfig
    ) -> dict[str, float]:
        """The metrics of the best epoch of a short training; raises `TrialPruned` where it does not promise.

        Only trials within the limit report: those above it would set a standard that no other can reach.
        """
        config = dataclasses.replace(settings, num_train_epochs=self.config.trial_epochs or 0, seed=self.config.seed)
        recovery = Recovery(config, self.recovery_texts, self.source.task, self.teacher)
        epochs: list[dict[str, float]] = []

        def report(progress: Progress) -> None:
            epochs.append({name.removeprefix("eval/"): value for name, value in progress.metrics.items()})
            if self.config.objective == "constrained":
                trial.report(self.value(epochs[-1]), progress.epoch)
                if progress.epoch < config.num_train_epochs and trial.should_prune():
                    raise optuna.TrialPruned(f"after epoch {progress.epoch}")

        recover(recovery, model, tracker, keep_checkpoints=False, score=self.validation, listeners=[AtEpochEnd(report)])
        best = min if self.config.score == "kl" else max
        return best(epochs[1:], key=self.value)


def objective(config: SweepPruningConfig, space: Space, study: Study) -> PruningTrials:
    """What a worker keeps between its trials."""
    trials = PruningTrials(config, space, study.user_attrs.get(LATENCY))
    check_data(study, trials.source.texts.data.fingerprint)
    return trials


def prepare(config: SweepPruningConfig, study: Study) -> None:
    """What is measured once, where a study is begun."""
    if config.budget_of == "latency" and LATENCY not in study.user_attrs:
        base = within_source_limits(with_source_data(config.pruning()))
        dense = load_dense(base, open_source(base))
        table = latency_table(dense, config.cost_batch_size, config.cost_length)
        study.set_user_attr(LATENCY, table._asdict())


def as_options(chosen: dict[str, Any]) -> dict[str, Any]:
    """Choices as the options of a pruning write them."""
    return {name: _list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
            for name, value in chosen.items()}  # fmt: skip


def _list(values: Sequence[float]) -> str:
    return ",".join(repr(float(number)) for number in values)
