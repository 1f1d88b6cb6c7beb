"""Online code length: a message that can be decoded, and what it is worth."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bertdyn.probing.code_length import block_ends, code_length

PENALTIES = (1e-2, 1.0)


def make_rows(rows=400, signal=2.0, seed=0):
    rng = np.random.default_rng(seed)
    classes = rng.integers(2, size=rows)
    features = rng.normal(size=(rows, 5))
    features[:, 0] += signal * classes
    return torch.tensor(features), torch.tensor(classes)


def test_it_is_the_sum_over_blocks_of_what_scikit_learn_says(monkeypatch):
    monkeypatch.setattr("bertdyn.probing.logistic.TOLERANCE", 1e-9)
    features, classes = make_rows()
    ends = block_ends(classes, 2)
    assert ends == [6, 12, 25, 50, 100, 200, 400]
    x, y = features.numpy(), classes.numpy()
    lengths = []
    for penalty in PENALTIES:
        bits = [np.full(ends[0], 1.0)]
        for start, end in zip(ends[:-1], ends[1:], strict=True):
            model = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, tol=1e-10, max_iter=10_000))
            said = model.fit(x[:start], y[:start]).predict_proba(x[start:end])
            bits.append(-np.log2(said[np.arange(end - start), y[start:end]]))
        lengths.append(np.concatenate(bits))
    best = min(lengths, key=np.sum)
    found = code_length(features, classes, PENALTIES, 2)
    np.testing.assert_allclose(found.bits, best, atol=1e-4)
    assert found.total == pytest.approx(best.sum() + 1)  # one bit says which of the two penalties
    assert found.compression == pytest.approx(400 / (best.sum() + 1))


def test_noise_compresses_nothing_and_signal_much():
    noise = code_length(*make_rows(1000, signal=0), PENALTIES, 2)
    signal = code_length(*make_rows(1000, signal=6), PENALTIES, 2)
    assert noise.compression < 1.01
    assert signal.compression > 5


def test_a_probe_is_never_fitted_without_all_classes():
    classes = torch.tensor([0] * 40 + [1] * 2 + [0, 1] * 60)
    assert block_ends(classes, 2)[0] >= 42
    features = torch.randn(len(classes), 3, dtype=torch.float64)
    assert np.isfinite(code_length(features, classes, PENALTIES, 2).bits).all()
    rare = torch.tensor([0] * 99 + [1])
    found = code_length(torch.randn(100, 3), rare, PENALTIES, 2)
    assert found.bits.sum() == 100  # nothing but the uniform code


def test_features_of_no_use_compress_what_the_sizes_of_the_classes_do():
    classes = torch.tensor(np.random.default_rng(0).permutation([0] * 900 + [1] * 100))
    nothing = code_length(torch.zeros(1000, 1), classes, [1.0], 2)
    entropy = -(0.9 * np.log2(0.9) + 0.1 * np.log2(0.1))
    assert 0.9 / entropy < nothing.compression < 1 / entropy
