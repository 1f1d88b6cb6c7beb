import pytest
import torch

from bertdyn.errors import InputError
from bertdyn.training.config import TrainingConfig
from bertdyn.training.loop import Progress
from bertdyn.training.optimization import make_optimizer, make_scheduler, updates_per_epoch
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
    ("name", "rates"),
    [
        ("linear", [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]),
        ("cosine", [0.0, 0.5, 1.0, (1 + 2**-0.5) / 2, 0.5, (1 - 2**-0.5) / 2, 0.0]),
        ("constant", [0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_schedules(name, rates):
    config = TrainingConfig(lr_scheduler_type=name, warmup_ratio=1 / 3, learning_rate=1.0)
    optimizer = make_optimizer(torch.nn.Linear(2, 2), config)
    scheduler = make_scheduler(optimizer, config, 6)
    found = []
    for _ in rates:
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert found == pytest.approx(rates)


def test_biases_and_norms_are_not_decayed():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    for parameter in model.parameters():
        torch.nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    make_optimizer(model, TrainingConfig(learning_rate=0.5, weight_decay=0.1)).step()
    assert torch.allclose(model[0].weight, torch.tensor(0.95))
    assert all((p == 1).all() for p in (model[0].bias, model[1].weight, model[1].bias))


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "adam"},
        {"lr_scheduler_type": "step"},
        {"mixed_precision": "int8"},
        {"num_train_epochs": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"learning_rate": float("inf")},
        {"seed": 2**32},
        {"warmup_ratio": 1.5},
        {"keep_checkpoints": -2},
    ],
)
def test_values_out_of_range(options):
    with pytest.raises(InputError, match="accepted are"):
        TrainingConfig(**options)
