"""Sweep over freeze schedules: what should learn when, and how fast?

mlflow run . -e sweep-freezing --env-manager local -P dataset=sst2 -P trial_train_samples=2000 -P trial_epochs=2
python -m sweeps.freeze_schedules --dataset sst2 --n_trials 20 --workers 2 --objective constrained --budget 0.5
"""

from bertdyn.steps.sweep_config import SweepFreezingConfig
from entrypoints.command import parse, run
from sweeps.command import launch

DESCRIPTION = (
    "An Optuna study over frozen layers and embeddings, for how many epochs, gradual unfreezing, learning rate and its "
    "decay by layer; each trial is a child run, and one that does not promise is stopped early. The winner is trained "
    "in full over --seeds and scored once on the test part, beside the same training with nothing frozen. The same "
    "command with the same --storage and --study_name, here or on another machine, joins the study, or goes on with it."
)


def main() -> None:
    config, _ = parse(SweepFreezingConfig, DESCRIPTION)
    launch("freezing", config)


if __name__ == "__main__":
    run(main)
