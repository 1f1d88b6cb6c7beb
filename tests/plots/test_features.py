"""The film of the features: one picture a state, which differ by nothing but where the points lie."""

import numpy as np
import pytest

from bertdyn.geometry.pca import fixed_basis
from bertdyn.plots.features import pca_of_state
from tests.plots.drawing import collisions, legend, panels


@pytest.mark.parametrize("num_layers", [2, 6])
def test_one_state_of_a_film(num_layers):
    generator = np.random.default_rng(0)
    bases = {
        layer: fixed_basis([generator.normal(scale=scale, size=(40, 5)) for scale in (1, 3)])
        for layer in range(1, num_layers + 1)
    }
    labels = np.arange(40) % 2
    first, second = (pca_of_state(bases, number, labels, ["no", "yes"], f"state {number}") for number in (0, 1))
    assert legend(first) == ["no", "yes"]
    assert not collisions(first)
    assert len(panels(first)) == num_layers
    for (title, before), after in zip(panels(first).items(), panels(second).values(), strict=True):
        layer = int(title.split()[1])
        assert before.get_xlim() == after.get_xlim()
        assert before.get_ylim() == after.get_ylim()
        for number, axes in ((0, before), (1, after)):
            drawn = np.concatenate([points.get_offsets() for points in axes.collections])
            expected = bases[layer].projections[number]
            assert np.allclose(drawn[np.lexsort(drawn.T)], expected[np.lexsort(expected.T)])
            assert axes.get_xlim()[0] < drawn[:, 0].min()
            assert axes.get_xlim()[1] > drawn[:, 0].max()
