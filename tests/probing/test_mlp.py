"""Perceptrons: what a line cannot separate, and what they must not see."""

import numpy as np
import pytest
import torch

from bertdyn.probing.cross_validation import make_folds
from bertdyn.probing.mlp import cross_validate_mlp
from bertdyn.steps.preparation import make_accelerator


@pytest.fixture(scope="module")
def accelerator():
    return make_accelerator("no")


def make_rows(rows=300, seed=0):
    """Two layers, of which only the second knows an exclusive or; the other target is random."""
    rng = np.random.default_rng(seed)
    plane = rng.normal(size=(rows, 2))
    classes = (plane[:, 0] * plane[:, 1] > 0).astype(int)
    features = np.stack([rng.normal(size=(rows, 6)), np.concatenate([5 * plane + 3, rng.normal(size=(rows, 4))], 1)])
    targets = np.stack([classes, rng.integers(2, size=rows)], axis=1)
    folds = make_folds(classes, 5, seed=0)
    return torch.tensor(features, dtype=torch.float32), torch.tensor(targets), torch.tensor(folds)


def test_it_reads_what_is_not_linear_and_only_that(accelerator):
    features, targets, folds = make_rows()
    scores = cross_validate_mlp(accelerator, features, targets, folds, outputs=2, hidden_size=16, seed=0)
    accuracy = (scores.argmax(dim=3) == targets).double().mean(dim=1)  # [layers, targets]
    assert accuracy[1, 0] > 0.85
    assert (accuracy.flatten()[[0, 1, 3]] - 0.5).abs().max() < 0.12


def test_the_judged_fold_makes_no_difference_to_its_probe(accelerator, monkeypatch):
    monkeypatch.setattr("bertdyn.probing.mlp.NUM_UPDATES", 6)
    features, targets, folds = make_rows(100)
    options = {"outputs": 2, "hidden_size": 4, "seed": 0}
    before = cross_validate_mlp(accelerator, features, targets, folds, **options)
    other = targets.clone()
    other[folds == 2] = 1 - other[folds == 2]
    after = cross_validate_mlp(accelerator, features, other, folds, **options)
    torch.testing.assert_close(before[:, folds == 2], after[:, folds == 2], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(before[:, folds == 3], after[:, folds == 3])


def test_numbers_in_their_own_unit(accelerator):
    features, _, folds = make_rows()
    numbers = (1000 + 50 * features[1, :, :1].abs()).double()
    scores = cross_validate_mlp(accelerator, features, numbers, folds, outputs=1, hidden_size=16, seed=0)
    rest = (scores[1, :, 0, 0] - numbers[:, 0]).square().sum() / (numbers[:, 0] - numbers.mean()).square().sum()
    assert 1 - rest > 0.8
