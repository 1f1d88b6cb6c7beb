"""Linear probes against scikit-learn: the same optimum, however many are fitted together."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bertdyn.probing.closed_form import fit_mean_difference, fit_nearest_centroid, fit_ridge
from bertdyn.probing.linear import Fits, load_probes, save_probes, scaling_of
from bertdyn.probing.logistic import fit_logistic

PENALTIES = (1e-3, 1e-1, 10.0)


def make_rows(num_classes=3, rows=240, width=12, dtype=torch.float64, seed=0):
    """Features of very different scales and means, one of them constant; classes that overlap; two sets of rows."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(num_classes, size=rows)
    features = rng.normal(size=(rows, width)) + 0.7 * np.eye(num_classes, width)[classes]
    features = features @ rng.normal(size=(width, width)) * np.logspace(-2, 2, width) + 50 * rng.normal(size=width)
    features[:, 3] = 7.5
    training = np.stack([np.arange(rows) % 5 != 0, np.arange(rows) % 3 == 0], axis=1)
    other = rng.integers(num_classes, size=rows)
    return torch.tensor(features, dtype=dtype), torch.tensor(np.stack([classes, other], axis=1)), torch.tensor(training)


def every_fit(penalties=PENALTIES):
    grid = torch.cartesian_prod(torch.arange(2), torch.arange(2), torch.arange(len(penalties)))
    return Fits(grid[:, 0], grid[:, 1], torch.tensor(penalties, dtype=torch.float64)[grid[:, 2]])


def reference(fit, number, features, values, training, model):
    chosen = training[:, fit.sets[number]].numpy()
    x, y = features.double().numpy(), values[:, fit.targets[number]].numpy()
    return make_pipeline(StandardScaler(), model).fit(x[chosen], y[chosen]), chosen, x, y


def objective(scores, weights, chosen, y, penalty):
    losses = np.logaddexp.reduce(scores, axis=1) - scores[np.arange(len(y)), y]
    return losses[chosen].mean() + np.sum(weights**2) / (2 * penalty * chosen.sum())


@pytest.mark.parametrize("num_classes", [2, 3, 5])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
def test_logistic_regression_is_that_of_scikit_learn(num_classes, dtype, tolerance):
    features, classes, training = make_rows(num_classes, dtype=dtype)
    fits = every_fit()
    probes = fit_logistic(features, classes, training, fits, num_classes)
    scores = probes.scores(features.double() if dtype == torch.float64 else features).double().numpy()
    equal = []
    for number, penalty in enumerate(fits.penalties.tolist()):
        model = LogisticRegression(C=penalty, tol=1e-10, max_iter=50_000)
        fitted, chosen, x, y = reference(fits, number, features, classes, training, model)
        said = fitted.decision_function(x)
        weights = fitted[-1].coef_
        if num_classes == 2:
            said = np.stack([np.zeros_like(said), said], axis=1)
        own = probes.weights[number].double().numpy() * fitted[0].scale_[:, None]
        best = objective(said, weights, chosen, y, penalty)
        assert objective(scores[:, number], own, chosen, y, penalty) == pytest.approx(best, rel=tolerance)
        equal.append(scores[:, number].argmax(axis=1) == said.argmax(axis=1))
        if dtype == torch.float64:
            known = np.delete(np.arange(features.shape[1]), 3)
            np.testing.assert_allclose(own.T[-len(weights) :, known], weights[:, known], atol=3e-3)
    assert np.mean(equal) >= 0.999


def test_probes_that_are_fitted_together_are_those_that_are_fitted_alone(monkeypatch):
    """Neither what else is fitted nor the groups that memory allows make a difference."""
    monkeypatch.setattr("bertdyn.probing.logistic.TOLERANCE", 1e-9)
    features, classes, training = make_rows()
    fits = every_fit()
    together = fit_logistic(features, classes, training, fits, 3)
    monkeypatch.setattr("bertdyn.probing.logistic.ELEMENTS", len(features) * 3 * 5)
    in_groups = fit_logistic(features, classes, training, fits, 3)
    monkeypatch.setattr("bertdyn.probing.logistic.ELEMENTS", 1)
    alone = fit_logistic(features, classes, training, fits, 3)
    for other in (in_groups, alone):
        torch.testing.assert_close(together.scores(features), other.scores(features), atol=1e-6, rtol=1e-6)


def test_rows_outside_of_training_make_no_difference(monkeypatch):
    features, classes, training = make_rows()
    fits = every_fit()
    changed, other = features.clone(), classes.clone()
    held_out = ~training.any(dim=1)
    changed[held_out] += 1000 * torch.randn(int(held_out.sum()), features.shape[1], dtype=features.dtype)
    other[held_out] = 0
    for fit in (fit_nearest_centroid, fit_mean_difference):
        before, after = fit(features, classes, training, fits, 3), fit(changed, other, training, fits, 3)
        torch.testing.assert_close(before.weights, after.weights, rtol=1e-9, atol=1e-9)
    monkeypatch.setattr("bertdyn.probing.logistic.TOLERANCE", 1e-9)
    before, after = (
        fit_logistic(f, c, training, fits, 3).scores(features) for f, c in ((features, classes), (changed, other))
    )
    torch.testing.assert_close(before, after, rtol=1e-5, atol=1e-5)


def test_separable_rows_converge():
    """Little penalty, more features than rows: the logits are large, the loss nearly 0."""
    features, classes, _ = make_rows(2, rows=40, width=60)
    fits = Fits(torch.tensor([0]), torch.tensor([0]), torch.tensor([1e4]))
    probes = fit_logistic(features, classes, torch.ones(40, 1, dtype=torch.bool), fits, 2)
    assert (probes.scores(features)[:, 0].argmax(dim=1) == classes[:, 0]).all()


def test_features_that_are_the_same_in_all_rows_say_the_majority():
    """As the first token's at layer 0: what is left is the intercept."""
    classes = torch.tensor([0] * 30 + [1] * 50)[:, None]
    features = torch.full((80, 6), 3.7)
    fits = Fits(torch.tensor([0]), torch.tensor([0]), torch.tensor([1.0]))
    everything = torch.ones(80, 1, dtype=torch.bool)
    scores = fit_logistic(features, classes, everything, fits, 2).scores(features)[:, 0]
    torch.testing.assert_close(scores.softmax(dim=1)[:, 1], torch.full((80,), 50 / 80), atol=1e-4, rtol=0)


def test_ridge_is_that_of_scikit_learn():
    features, classes, training = make_rows()
    noise = np.random.default_rng(1).normal(size=(240, 2))
    numbers = features[:, :2] / features[:, :2].std(dim=0) + torch.tensor(noise)
    fits = every_fit()
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-3)):
        probes = fit_ridge(features.to(dtype), numbers, training, fits)
        scores = probes.scores(features.to(dtype))[..., 0].double().numpy()
        for number, penalty in enumerate(fits.penalties.tolist()):
            fitted, _, x, _ = reference(fits, number, features, numbers, training, Ridge(alpha=1 / penalty))
            np.testing.assert_allclose(scores[:, number], fitted.predict(x), atol=tolerance * np.ptp(fitted.predict(x)))


def test_nearest_centroid_is_that_of_scikit_learn():
    features, classes, training = make_rows()
    fits = every_fit((1.0,))
    predictions = fit_nearest_centroid(features, classes, training, fits, 3).scores(features).argmax(dim=2).numpy()
    for number in range(len(fits.sets)):
        fitted, _, x, _ = reference(fits, number, features, classes, training, NearestCentroid())
        np.testing.assert_array_equal(predictions[:, number], fitted.predict(x))


def test_mean_difference_cuts_half_way_between_the_means():
    features, classes, training = make_rows(2)
    fits = every_fit((1.0,))
    probes = fit_mean_difference(features, classes, training, fits, 2)
    for number in range(len(fits.sets)):
        chosen, own = training[:, fits.sets[number]], classes[:, fits.targets[number]]
        means = [features[chosen & (own == k)].mean(dim=0) for k in (0, 1)]
        direction = (means[1] - means[0]) / (means[1] - means[0]).norm()
        distance = (features - (means[0] + means[1]) / 2) @ direction
        torch.testing.assert_close(probes.scores(features)[:, number, 1], distance)
        torch.testing.assert_close(probes.scores(features)[:, number, 0], -distance)


def test_scaling_is_that_of_scikit_learn():
    features, _, training = make_rows()
    for number in range(2):
        scaler = StandardScaler().fit(features[training[:, number]].numpy())
        scaling = scaling_of(features, training)
        np.testing.assert_allclose(scaling.mean[number], scaler.mean_, rtol=1e-12)
        np.testing.assert_allclose(scaling.std[number], scaler.scale_, rtol=1e-10)


def test_an_outlier_in_the_first_row_hides_no_variance():
    rows = 0.01 * np.random.default_rng(0).normal(size=(20_000, 2)).astype(np.float32)
    rows[0] = 0.4
    everything = torch.ones(len(rows), 1, dtype=torch.bool)
    scaling = scaling_of(torch.from_numpy(rows), everything)
    np.testing.assert_allclose(scaling.std[0], StandardScaler().fit(rows).scale_, rtol=1e-3)


def test_a_class_without_training_rows_is_never_said():
    features, classes, training = make_rows()
    classes[training[:, 0], 0] = classes[training[:, 0], 0].clamp(max=1)
    fits = Fits(torch.tensor([0]), torch.tensor([0]), torch.tensor([1.0]))
    for fit in (fit_nearest_centroid, fit_mean_difference):
        scores = fit(features, classes, training, fits, 3).scores(features)
        assert not scores.isnan().any()
        assert set(scores.argmax(dim=2).unique().tolist()) <= {0, 1}


def test_stored_probes_say_the_same(tmp_path):
    features, classes, training = make_rows(dtype=torch.float32)
    probes = fit_nearest_centroid(features, classes, training, every_fit((1.0,)), 3)
    names = {f"best/layer_{number:02d}": probes.only(slice(number, number + 1)) for number in range(4)}
    save_probes(tmp_path / "probes.safetensors", names, {"target": "label"})
    loaded = load_probes(tmp_path / "probes.safetensors")
    assert list(loaded) == list(names)
    for name, probe in names.items():
        torch.testing.assert_close(loaded[name].scores(features), probe.scores(features))
