"""A plan is a small file that can be checked, composed and told from any other."""

import dataclasses
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bertdyn.errors import InputError
from bertdyn.pruning.plan import Plan, best, identity, load_plan, same_sizes
from bertdyn.pruning.shape import Shape, Site
from tests.pruning.models import random_plan

SHAPE = Shape((4, 4, 3), (16, 12, 16), head_size=8, hidden_size=32, depth=3)
EMPTIED = Shape((4, 0, 3), (16, 12, 0), head_size=8, hidden_size=32, depth=3)


@pytest.mark.parametrize("shape", [SHAPE, EMPTIED, SHAPE._replace(heads=(4,), neurons=(16,))])
def test_what_is_saved_is_what_is_loaded(tmp_path, shape):
    plan = dataclasses.replace(random_plan(shape, seed=1, least=0), fingerprint="abc")
    plan.save(tmp_path / "plan.json")
    again = load_plan(tmp_path / "plan.json")
    assert again == plan
    assert again.digest == plan.digest == json.loads((tmp_path / "plan.json").read_text())["digest"]
    assert again.result == plan.result
    assert again.result.heads == tuple(
        len(plan.kept.get(Site("attention", i), ())) for i in range(1, len(shape.heads) + 1)
    )


def test_a_digest_is_of_what_stays():
    plan = random_plan(SHAPE, seed=1)
    shuffled = Plan(SHAPE, dict(reversed(plan.kept.items())), "another model")
    assert shuffled.digest == plan.digest
    seen = {plan.digest}
    for site, units in plan.kept.items():
        seen.add(Plan(SHAPE, plan.kept | {site: units[1:]}).digest)
    seen.add(identity(SHAPE).digest)
    seen.add(identity(SHAPE._replace(head_size=4)).digest)
    assert len(seen) == len(plan.kept) + 3


def test_inputs_of_a_head_are_its_dimensions():
    plan = identity(SHAPE)
    kept = plan.kept | {Site("attention", 1): (0, 2), Site("ffn", 1): (3, 5)}
    plan = Plan(SHAPE, kept)
    assert plan.inputs(Site("attention", 1)) == [*range(8), *range(16, 24)]
    assert plan.inputs(Site("ffn", 1)) == [3, 5]
    assert plan.result != plan.shape
    assert identity(SHAPE).result == identity(SHAPE).shape


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_plans_compose(one, two, three):
    """As maps of indices: in the numbering of the first model, and whichever two are joined first."""
    first = dataclasses.replace(random_plan(SHAPE, one, least=0), fingerprint="abc")
    second = random_plan(first.result, two, least=0)
    third = random_plan(second.result, three, least=0)
    both = first.then(second)
    assert both.shape == SHAPE
    assert both.fingerprint == "abc"
    assert both.result == second.result
    for site, units in first.kept.items():
        assert both.kept[site] == tuple(units[i] for i in second.kept.get(site, ()))
    assert both.then(third) == first.then(second.then(third))
    assert identity(SHAPE, "abc").then(first) == first.then(identity(first.result)) == first


def test_a_plan_for_another_model_cannot_follow():
    first = random_plan(SHAPE, seed=2)
    with pytest.raises(ValueError, match="cannot follow"):
        first.then(identity(SHAPE))


@pytest.mark.parametrize(
    "units", [(1, 0), (0, 0, 1), (0, 16), (-1, 0)], ids=["unsorted", "repeated", "too large", "negative"]
)
def test_impossible_units_are_refused(units):
    with pytest.raises(ValueError, match=r"ffn of layer 1: kept units must be ascending numbers from 0 to 15"):
        Plan(SHAPE, identity(SHAPE).kept | {Site("ffn", 1): units})


def test_every_block_has_an_entry():
    kept = identity(SHAPE).kept
    without = {site: units for site, units in kept.items() if site != Site("ffn", 2)}
    for wrong in (without, kept | {Site("ffn", 4): (0,)}):
        with pytest.raises(ValueError, match="an entry for each block"):
            Plan(SHAPE, wrong)
    with pytest.raises(ValueError, match="an entry for each block"):
        Plan(EMPTIED, kept)


def test_a_plan_belongs_to_one_model():
    plan = identity(SHAPE, "abc")
    plan.check_fits(SHAPE, "abc")
    identity(SHAPE).check_fits(SHAPE, "abc")
    with pytest.raises(InputError, match="other weights"):
        plan.check_fits(SHAPE, "abd")
    with pytest.raises(InputError, match=r"heads \[4, 4, 3\] of 8 .* this one has heads \[4, 0, 3\] of 8") as error:
        plan.check_fits(EMPTIED, "abc")
    assert "\n" not in str(error.value)


def spoiled():
    """Name → what a file may hold that is no plan."""
    good = identity(SHAPE).to_dict()

    def with_units(units):
        return good | {"layers": [{**good["layers"][0], "neurons": units}, *good["layers"][1:]]}

    return {
        "empty": "",
        "not JSON": "{'format': 1}\nand more",
        "not UTF-8": b"\xff\xfe\x00",
        "a list": json.dumps([good]),
        "null": "null",
        "another JSON": json.dumps({"a": 1}),
        "a later format": json.dumps(good | {"format": 2}),
        "a layer less": json.dumps(good | {"layers": good["layers"][1:]}),
        "no layers": json.dumps(good | {"layers": None}),
        "no sizes": json.dumps(good | {"of": {"heads": [4]}}),
        "unsorted": json.dumps(with_units([1, 0])),
        "too large": json.dumps(with_units([16])),
        "words": json.dumps(with_units(["0", "1"])),
        "halves": json.dumps(with_units([0.5, 1.5])),
    }


@pytest.mark.parametrize("name", spoiled())
def test_a_file_that_is_no_plan_is_refused_in_one_line(tmp_path, name):
    path, content = tmp_path / "plan.json", spoiled()[name]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as error:
        load_plan(path)
    assert str(error.value).startswith(f"--plan {str(path)!r} is no pruning plan: ")
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    for path in (tmp_path / "absent.json", tmp_path):
        with pytest.raises(InputError, match="is no pruning plan"):
            load_plan(path)


def test_same_sizes_keeps_as_many_of_the_best():
    plan = random_plan(SHAPE, seed=3)
    scores = {site: torch.arange(SHAPE.units(site), dtype=torch.float64) for site in SHAPE.sites}
    other = same_sizes(dataclasses.replace(plan, fingerprint="abc"), scores)
    assert other.result == plan.result
    assert other.fingerprint == "abc"
    for site, units in other.kept.items():
        assert units == tuple(range(SHAPE.units(site) - len(plan.kept[site]), SHAPE.units(site)))
    assert best([1.0, 3.0, 3.0, 0.0, 3.0], 2) == (1, 2)  # of equals the first


def test_table_has_a_row_a_layer():
    kept = identity(EMPTIED).kept | {Site("attention", 3): (0, 2), Site("ffn", 1): ()}
    table = Plan(EMPTIED, kept).table()
    assert table.to_dict("list") == {
        "layer": [1, 2, 3],
        "heads": [4, 0, 3],
        "heads_kept": [4, 0, 2],
        "neurons": [16, 12, 0],
        "neurons_kept": [0, 12, 0],
    }
