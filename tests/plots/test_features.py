"""The film of the features: one picture a state, which differ by nothing but where the points lie."""

import warnings

import numpy as np
import pytest
from matplotlib.image import imread

from bertdyn.geometry.pca import fixed_basis
from bertdyn.plots.features import pca_of_state
from bertdyn.tracking.tracker import Tracker
from tests.plots.drawing import collisions, legend, panels

pytestmark = pytest.mark.filterwarnings("error")


def bases(num_layers, rows=40, scales=(1, 3)):
    generator = np.random.default_rng(0)
    return {
        layer: fixed_basis([generator.normal(scale=scale, size=(rows, 5)) for scale in scales])
        for layer in range(1, num_layers + 1)
    }


@pytest.mark.parametrize("num_layers", [1, 2, 6, 12])
def test_one_state_of_a_film(num_layers):
    found, labels = bases(num_layers), np.arange(40) % 2
    first, second = (pca_of_state(found, number, labels, ["no", "yes"], f"state {number}") for number in (0, 1))
    assert legend(first) == ["no", "yes"]
    assert not collisions(first)
    assert len(panels(first)) == num_layers
    for (title, before), after in zip(panels(first).items(), panels(second).values(), strict=True):
        layer = int(title.split()[1])
        assert before.get_xlim() == after.get_xlim()
        assert before.get_ylim() == after.get_ylim()
        for number, axes in ((0, before), (1, after)):
            drawn = np.concatenate([points.get_offsets() for points in axes.collections])
            expected = found[layer].projections[number]
            assert np.allclose(drawn[np.lexsort(drawn.T)], expected[np.lexsort(expected.T)])
            assert axes.get_xlim()[0] < drawn[:, 0].min()
            assert axes.get_xlim()[1] > drawn[:, 0].max()


def test_with_many_classes_the_panels_stay_what_they_are():
    names = [f"class {number}" for number in range(150)]
    figure = pca_of_state(bases(6, rows=300), 0, np.arange(300) % 150, names, "many")
    assert len(legend(figure)) == 150
    assert not collisions(figure)
    height = {round(axes.get_position().height * figure.get_figheight(), 1) for axes in panels(figure).values()}
    assert min(height) > 1.5


def test_all_pictures_of_a_film_have_one_size(tmp_path):
    found, labels, tracker = bases(6, scales=[1] * 11), np.arange(40) % 2, Tracker(tmp_path)
    for number in (9, 10):
        title = f"First-token features: {'a-long-name-of-a-model-on-its-data-' * 2}\nepoch {number}"
        tracker.log_frame(pca_of_state(found, number, labels, ["no", "yes"], title), "film", number)
    assert imread(tmp_path / "figures/film/009.png").shape == imread(tmp_path / "figures/film/010.png").shape


def test_features_that_do_not_vary_are_drawn():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of the share of no variance
        still = {1: fixed_basis([np.ones((10, 5)), np.ones((10, 5))])}
    figure = pca_of_state(still, 0, np.zeros(10, dtype=int), ["one"], "still")
    assert list(panels(figure)) == ["layer 1"]
