import numpy as np
import pytest

from bertdyn.geometry.pca import fixed_basis


def _rows(n=200, width=10, seed=0):
    scales = np.array([5.0, 3.0] + [0.3] * (width - 2))
    return np.random.default_rng(seed).normal(size=(n, width)) * scales


def test_identical_states_have_identical_projections_and_rotation_moves_only_the_rotated():
    rows = _rows()
    basis = fixed_basis([rows, rows, -rows])
    np.testing.assert_array_equal(basis.projections[0], basis.projections[1])
    assert not np.allclose(basis.projections[0], basis.projections[2])  # a flip is seen, not undone
    assert basis.explained[0].sum() == pytest.approx(34 / (34 + 8 * 0.09), rel=0.02)


def test_a_large_common_drift_does_not_hide_the_structure():
    rows = _rows()
    drift = np.zeros(10)
    drift[9] = 1000.0
    still, moved = fixed_basis([rows, rows]), fixed_basis([rows, rows + drift])
    np.testing.assert_allclose(np.abs(moved.projections[0]), np.abs(still.projections[0]), atol=1e-6)


def test_equals_plain_pca_for_one_state():
    from sklearn.decomposition import PCA

    rows = _rows()
    plain = PCA(2).fit(rows)
    np.testing.assert_allclose(np.abs(fixed_basis([rows]).projections[0]), np.abs(plain.transform(rows)), atol=1e-9)
    np.testing.assert_allclose(fixed_basis([rows]).explained[0], plain.explained_variance_ratio_, atol=1e-9)


def test_constant_rows_have_no_share():
    assert np.isnan(fixed_basis([np.ones((20, 4))]).explained).all()
