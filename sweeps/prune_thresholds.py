"""Sweep over pruning thresholds, layer by layer: which model is nearest to the dense one, at which cost?

mlflow run . -e sweep-pruning --env-manager local -P source_run_id=<fine-tune run> -P n_trials=100 -P workers=2
python -m sweeps.prune_thresholds --source_run_id <fine-tune run> --objective constrained --budget 0.6 --trial_epochs 1
"""

from bertdyn.steps.sweep_config import SweepPruningConfig
from entrypoints.command import parse, run
from sweeps.command import launch

DESCRIPTION = (
    "An Optuna study over the thresholds of every layer's heads and neurons, the criterion and what makes up for what "
    "goes; each trial is a child run of seconds. The winner is trained in full over --seeds and scored once on the "
    "test part, beside the unpruned model, uniform thresholds and the exact division of the same cost. The same "
    "command with the same --storage and --study_name, here or on another machine, joins the study, or goes on with it."
)


def main() -> None:
    config, _ = parse(SweepPruningConfig, DESCRIPTION)
    launch("pruning", config)


if __name__ == "__main__":
    run(main)
