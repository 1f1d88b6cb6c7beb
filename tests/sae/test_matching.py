from itertools import permutations

import numpy as np
import pytest

from bertdyn.errors import InputError
from bertdyn.geometry.cosines import unit
from bertdyn.sae.matching import match, seen_from_second


def directions(latents, width=16, seed=0):
    return unit(np.random.default_rng(seed).standard_normal((latents, width)))


def test_the_pairs_have_the_largest_sum_there_is():
    first, second = directions(5), directions(6, seed=1)
    cosines = first @ second.T
    best = max(permutations(range(6), 5), key=lambda chosen: cosines[range(5), chosen].sum())
    found = match(first, second)
    np.testing.assert_array_equal(found.partner, best)
    np.testing.assert_allclose(found.cosine, cosines[range(5), best], atol=1e-12)


def test_a_permuted_dictionary_is_found_again_whatever_the_order():
    first = directions(40)
    order = np.random.default_rng(2).permutation(40)
    found = match(first, first[order])
    np.testing.assert_array_equal(order[found.partner], np.arange(40))
    np.testing.assert_allclose(found.cosine, 1, atol=1e-12)


def test_one_to_one_a_partner_is_used_once_and_the_nearest_many_times():
    """Two copies of a latent: the second copy has to take what is left."""
    first = np.eye(3)[[0, 0, 1]]
    second = np.eye(3)
    found = match(first, second)
    assert sorted(found.partner) == [0, 1, 2]
    assert sorted(found.cosine) == [0, 1, 1]


def test_dead_latents_take_no_part():
    first = np.eye(4)[:3]
    alive = np.array([True, False, True])
    found = match(first, np.eye(4), alive, np.array([False, True, True, True]))
    assert found.partner[1] == -1
    assert np.isnan(found.cosine[1])
    assert found.partner[2] == 2
    assert found.partner[0] in (1, 3)
    assert (match(first, np.eye(4), np.zeros(3, dtype=bool)).partner == -1).all()
    dead = first * alive[:, None]  # what takes no part may even be of no length
    assert match(dead, np.eye(4), alive).partner.tolist() == [0, -1, 2]


@pytest.mark.parametrize(("here", "there"), [(7, 4), (4, 7)])
def test_seen_from_the_second_the_pairs_are_the_same(here, there):
    first, second = directions(here), directions(there, seed=1)
    forth, back = seen_from_second(match(first, second), there), match(second, first)
    np.testing.assert_array_equal(forth.partner, back.partner)
    np.testing.assert_allclose(forth.cosine, back.cosine, atol=1e-12)
    assert (forth.partner < 0).sum() == max(there - here, 0)


def test_what_cannot_be_compared_is_an_input_error():
    with pytest.raises(InputError, match="width 16 and 8"):
        match(directions(4), directions(4, 8))
    with pytest.raises(InputError, match="one has length 2; directions of length 1"):
        match(directions(4), 2 * directions(4))
