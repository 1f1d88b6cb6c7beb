"""Pruning: a fine-tuned model in; a smaller one that reloads and deploys, what it lost and what it gained.

source model, calibration texts → statistics → scores → plan → surgery
    → recovery, scored beside controls → cost → report
"""

import dataclasses
import time
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from accelerate.utils import set_seed
from transformers import PreTrainedModel

from bertdyn.errors import InputError
from bertdyn.models.fingerprint import weights_fingerprint
from bertdyn.pruning.cost import Costs, flop_costs, parameter_costs
from bertdyn.pruning.latency_table import measured_costs
from bertdyn.pruning.plan import Plan, load_plan, same_sizes
from bertdyn.pruning.scores import Evidence, unit_scores
from bertdyn.pruning.search import Calibration, Found, apply, look, search
from bertdyn.pruning.shape import shape_of
from bertdyn.pruning.targets import plan_maker
from bertdyn.steps.deployment import deploy
from bertdyn.steps.fine_tuning import PIPELINES
from bertdyn.steps.preparation import record_inputs, without_padding
from bertdyn.steps.prune_config import PruneConfig
from bertdyn.steps.prune_report import CONTROL_WORDS, Findings, scalars, write_report
from bertdyn.steps.prune_scores import Judge
from bertdyn.steps.prune_source import Source, calibrate, load_dense, load_state, open_source
from bertdyn.steps.recovery import Recovery, recover
from bertdyn.steps.sources import tags_of, with_source_data, within_source_limits
from bertdyn.tracking.locations import run_folder
from bertdyn.tracking.tracker import Tracker
from bertdyn.training.checkpoints import checkpoint_path, save_start


class PruneResult(NamedTuple):
    """What a pruning found."""

    plan: Plan | None
    """None for several seeds, of which each has its own."""
    scores: pd.DataFrame
    """One row a model, stage and part: scores, KL divergence from the dense model, share of the same answers."""
    summary: str
    """The run's report, Markdown."""


class Timed(NamedTuple):
    """A found model, and how long it took from calibration texts to weights."""

    found: Found
    seconds: float


def prune(config: PruneConfig, tracker: Tracker) -> PruneResult:
    """Prune one model, with one seed.

    Raises
    ------
    InputError
        Whatever is wrong with the source, the texts, the plan or the options.
    """
    config = within_source_limits(with_source_data(config))
    tracker.log_config(dataclasses.asdict(config))
    source = open_source(config)
    record_inputs(source.texts, tracker)
    set_seed(config.seed)
    dense = load_dense(config, source)
    timed, models = cut(config, source, dense)
    plan = dataclasses.replace(timed.found.plan, fingerprint=weights_fingerprint(dense))
    plan.save(tracker.folder / "plan.json")
    tracker.publish("plan.json")
    judge, best = score_and_recover(config, source, dense, models, tracker)
    folder = tracker.folder / checkpoint_path(best)
    deployment = deploy(config, source.location, folder, tracker, source.texts.data)
    findings = Findings(
        config, source.label, plan, timed.found, timed.seconds, judge.table(), judge.differences(), deployment, best
    )
    summary, measured = write_report(findings, tracker)
    final = load_state(str(folder), config, source.texts.data)
    tracker.log_model(final, source.texts.tokenizer, PIPELINES[source.task.name], measured, config.register_as)
    tracker.note(summary)
    return PruneResult(plan, judge.table(), summary)


def cut(config: PruneConfig, source: Source, dense: PreTrainedModel) -> tuple[Timed, dict[str, PreTrainedModel]]:
    """The pruned model and how it was found, and all that is scored, by name: `pruned` and the pruned controls."""
    calibration = calibrate(config, source, dense)
    timed = find(config, dense, calibration)
    return timed, {"pruned": timed.found.model, **controls(config, dense, calibration, timed.found.plan)}


def score_and_recover(
    config: PruneConfig,
    source: Source,
    dense: PreTrainedModel,
    models: dict[str, PreTrainedModel],
    tracker: Tracker,
) -> tuple[Judge, int]:
    """Score all models after surgery and, trained alike, after recovery; the judge, and the pruned model's best epoch.

    What is scored after recovery is what was saved. Each control is a child run; its weights are not kept.
    """
    everyone = {name: without_padding(model, config) for name, model in {"dense": dense, **models}.items()}
    judge = Judge(config, source.texts, source.task, dense)
    for name, model in everyone.items():
        judge.score(name, "surgery", model)
    if not config.recover:
        save_start(tracker.folder, models["pruned"], source.texts.tokenizer, tracker.publish)
        return judge, 0
    recovery = Recovery(config, source.texts, source.task, dense)
    best = recover(recovery, models["pruned"], tracker, keep_checkpoints=True)
    saved = str(tracker.folder / checkpoint_path(best))
    judge.score("pruned", "recovery", load_unpadded(saved, config, source))
    for name in config.control_list():
        # The dense model is the teacher of all: its control is a copy.
        student = models[name] if name != "dense" else load_unpadded(source.location, config, source)
        tags = tags_of(config) | {"bertdyn.stage": "prune-control", "bertdyn.control": name}
        with tracker.child(f"{source.label}-{name}-s{config.seed}-control", tags) as child:
            child.log_config(dataclasses.asdict(config) | {"control": name})
            recover(recovery, student, child, keep_checkpoints=False)
            judge.score(name, "recovery", student)
            child.log_metrics(scalars(judge.table(), name, "recovery"), config.num_train_epochs)
            child.note(
                f"Control of pruning: {CONTROL_WORDS[name]}, trained as the pruned model of {tracker.link()} was."
            )
    return judge, best


def load_unpadded(location: str, config: PruneConfig, source: Source) -> PreTrainedModel:
    """The model in a folder, computing no padding where `--unpadded` says so and it can."""
    return without_padding(load_state(location, config, source.texts.data, source.device), config)


def costs_of(config: PruneConfig, dense: PreTrainedModel) -> Costs:
    """What the budget is a share of."""
    if config.budget_of == "parameters":
        return parameter_costs(shape_of(dense))
    if config.budget_of == "latency":
        return measured_costs(dense, config.cost_batch_size, config.cost_length)
    return flop_costs(shape_of(dense), length=config.cost_length)


def find(config: PruneConfig, dense: PreTrainedModel, calibration: Calibration) -> Timed:
    """The pruned model, by the plan that was given or by a search."""
    started = time.perf_counter()
    if config.plan:
        plan = given_plan(config.plan, config.allow_empty, dense)
        found = apply(look(dense, calibration, config.compensation), plan, compensation=config.compensation)
    else:
        make_plan = plan_maker(config, shape_of(dense), costs_of(config, dense))
        found = search(
            dense,
            calibration,
            config.criterion,
            make_plan,
            compensation=config.compensation,
            rounds=config.pruning_rounds,
        )
    return Timed(found, time.perf_counter() - started)


def given_plan(name: str, allow_empty: bool, dense: PreTrainedModel) -> Plan:
    """The plan in a file, or in an artifact of a run (`runs:/<run id>/plan.json`).

    Raises
    ------
    InputError
        If there is none, it is for another model, or it removes whole blocks and must not.
    """
    run_id, _, path = name.removeprefix("runs:/").partition("/")
    plan = load_plan(run_folder(run_id, path) if name.startswith("runs:/") else Path(name))
    plan.check_fits(shape_of(dense), weights_fingerprint(dense))
    empty = [str(site) for site, units in plan.kept.items() if not units]
    if empty and (plan.shape.shares_layers or not allow_empty):
        how = "not accepted where layers share their weights" if plan.shape.shares_layers else "give --allow_empty true"
        raise InputError(f"--plan {name!r} leaves nothing of {empty[0]}: {how}")
    return plan


def controls(
    config: PruneConfig, dense: PreTrainedModel, calibration: Calibration, plan: Plan
) -> dict[str, PreTrainedModel]:
    """Models of the sizes of `plan` with other units, made up for in the same way."""
    found, looked = {}, look(dense, calibration, config.compensation)
    for name in config.control_list():
        if name != "dense":
            other = same_sizes(plan, unit_scores(name, dense, Evidence(), seed=config.seed))
            found[name] = apply(looked, other, compensation=config.compensation).model
    return found
