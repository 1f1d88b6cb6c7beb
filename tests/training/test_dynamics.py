import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from bertdyn.training.dynamics import Dynamics, scalars
from bertdyn.training.gradients import tensor_norms
from bertdyn.training.groups import by_group
from bertdyn.training.loop import Progress
from tests.families import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_every_number_against_the_plain_formula(checkpoints, family):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(checkpoints[family])
    parameters = dict(model.named_parameters())
    history = [{name: p.detach().double().clone() for name, p in parameters.items()}]
    dynamics = Dynamics(model)
    progress = Progress(epoch=0, history=[{}])
    dynamics.on_epoch_end(progress)
    gradients: dict[int, list[dict]] = {1: [], 2: []}
    for epoch in (1, 2):
        progress.epoch = epoch
        progress.history.append({})
        dynamics.on_epoch_start(progress)
        for step in range(3):
            model.zero_grad()
            inputs = {"input_ids": torch.randint(5, 40, (2, 6)), "attention_mask": torch.ones(2, 6)}
            model(**inputs, labels=torch.tensor([0, 1])).loss.backward()
            dynamics.on_gradients(progress, tensor_norms(list(parameters.values())))
            gradients[epoch].append({n: 0.0 if p.grad is None else p.grad.norm().item() for n, p in parameters.items()})
            with torch.no_grad():
                for p in parameters.values():
                    if p.grad is not None:
                        p -= 0.1 * p.grad * (step + 1)
        with torch.no_grad():
            next(iter(parameters.values())).view(-1)[:3] = 0
        history.append({name: p.detach().double().clone() for name, p in parameters.items()})
        dynamics.on_epoch_end(progress)

    table = dynamics.table.set_index(["epoch", "parameter"])
    assert len(table) == 3 * len(parameters)
    for epoch in (1, 2):
        for name in parameters:
            row, now, before = table.loc[(epoch, name)], history[epoch][name], history[epoch - 1][name]
            assert row["norm"] == pytest.approx(now.norm().item(), rel=1e-12)
            assert row["sparsity"] == pytest.approx((now == 0).double().mean().item())
            assert row["distance_from_init"] == pytest.approx(
                (now - history[0][name]).norm().item(), rel=1e-4, abs=1e-7
            )
            was = before.norm().item()
            expected = (now - before).norm().item() / was if was else float("nan")
            assert row["relative_update"] == pytest.approx(expected, rel=1e-4, abs=1e-7, nan_ok=True)
            norms = np.array([g[name] for g in gradients[epoch]])
            assert row["grad_norm_mean"] == pytest.approx(norms.mean(), rel=1e-5)
            assert row["grad_norm_max"] == pytest.approx(norms.max(), rel=1e-5)
            assert row["grad_norm_rms"] == pytest.approx(np.sqrt((norms**2).mean()), rel=1e-5)
    start = table.loc[0]
    assert (start["distance_from_init"] == 0).all()
    assert start[["relative_update", "grad_norm_mean", "grad_norm_max"]].isna().all().all()


def test_groups_combine_exactly(checkpoints):
    """The norm of a group is the norm of its concatenated tensors."""
    model = AutoModelForSequenceClassification.from_pretrained(checkpoints["bert"])
    dynamics = Dynamics(model)
    dynamics.on_epoch_end(Progress(epoch=0, history=[{}]))
    groups = by_group(dynamics.table).set_index("group")
    layer = torch.cat([p.detach().flatten() for p in model.bert.encoder.layer[1].parameters()])
    assert groups.at["layer_02", "norm"] == pytest.approx(layer.norm().item(), rel=1e-6)
    assert set(groups.index) == {"embeddings", "layer_01", "layer_02", "layer_03", "pooler", "head"}


def test_resumed_dynamics_measure_from_epoch_0(checkpoints):
    model = AutoModelForSequenceClassification.from_pretrained(checkpoints["bert"])
    initial = {name: p.detach() + 1.0 for name, p in model.named_parameters()}
    dynamics = Dynamics(model, initial, pd.DataFrame({"epoch": [0]}))
    progress = Progress(epoch=1, history=[{}, {}])
    dynamics.on_epoch_start(progress)
    dynamics.on_epoch_end(progress)
    row = dynamics.table.set_index("parameter").loc["classifier.bias"]
    assert row["distance_from_init"] == pytest.approx(2**0.5)
    assert row["update_norm"] == 0
    assert dynamics.table["epoch"].tolist()[0] == 0


def test_deep_models_stay_below_a_hundred_scalars():
    rows = pd.DataFrame(
        {
            "epoch": 1,
            "component": ["query"] * 48 + ["head", "pooler", "word_embeddings"],
            "layer": pd.array([*range(1, 49), None, None, None], dtype="Int64"),
        }
    )
    for column in ("norm", "distance_from_init", "update_norm", "previous_norm", "grad_norm_rms"):
        rows[column] = 1.0
    keys = scalars(rows)
    assert len(keys) <= 85
    assert {"norm/layer_01", "grad/layer_47", "update/head"} <= set(keys)


def test_overflowed_gradients_count_for_nothing(checkpoints):
    """With float16, an infinite gradient means that the update was skipped."""
    model = AutoModelForSequenceClassification.from_pretrained(checkpoints["bert"])
    dynamics = Dynamics(model)
    progress = Progress(epoch=1, history=[{}, {}])
    dynamics.on_epoch_start(progress)
    n = len(dynamics.names)
    dynamics.on_gradients(progress, torch.full((n,), 2.0))
    dynamics.on_gradients(progress, torch.full((n,), float("inf")))
    dynamics.on_epoch_end(progress)
    assert (dynamics.table["grad_norm_mean"] == 2.0).all()
    assert (dynamics.table["grad_norm_max"] == 2.0).all()
