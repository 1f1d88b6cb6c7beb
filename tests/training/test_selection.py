import pytest

from bertdyn.errors import InputError
from bertdyn.training.config import TrainingConfig
from bertdyn.training.loop import Progress
from bertdyn.training.optimization import updates_per_epoch
from bertdyn.training.selection import EarlyStopping, best_epoch


def _history(*values):
    return [{"m": value} for value in values]


def test_ties_go_to_the_earliest_and_epoch_0_never_wins():
    assert best_epoch(_history(0.9, 0.5, 0.7, 0.7), "m") == 2
    assert best_epoch(_history(0.9, 0.5), "m") == 1


def test_patience_counts_epochs_without_a_better_one():
    listener, progress = EarlyStopping("m", 2), Progress()
    stops = []
    for epoch, value in enumerate([0.1, 0.5, 0.5, 0.6, 0.6, 0.2]):
        progress.epoch = epoch
        progress.history.append({"m": value})
        listener.on_epoch_end(progress)
        stops.append(progress.stop)
    assert stops == [False, False, False, False, False, True]


@pytest.mark.parametrize(
    ("examples", "batch", "accumulation", "processes", "updates"),
    [(10, 4, 1, 1, 3), (10, 4, 2, 1, 2), (10, 4, 1, 2, 2), (8, 4, 1, 2, 1)],
)
def test_updates(examples, batch, accumulation, processes, updates):
    config = TrainingConfig(per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation)
    assert updates_per_epoch(examples, config, processes) == updates


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "adam"},
        {"lr_scheduler_type": "step"},
        {"mixed_precision": "int8"},
        {"num_train_epochs": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"warmup_ratio": 1.5},
        {"keep_checkpoints": -2},
    ],
)
def test_values_out_of_range(options):
    with pytest.raises(InputError, match="accepted are"):
        TrainingConfig(**options)
