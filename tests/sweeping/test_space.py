"""What trials choose from: every value within its range, back as the options write it, and what is wrong is refused."""

import json
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from bertdyn.errors import InputError
from bertdyn.sweeping.space import Number, PerLayer, Space, Switch, Words, interpolated, layer_name, read_space

LAYERS = 4
QUANTILES = PerLayer(Number(0, 1), LAYERS)
KINDS = {
    "attention_thresholds": QUANTILES,
    "ffn_thresholds": QUANTILES,
    "criterion": Words(("fisher", "wanda", "magnitude")),
    "freeze_embeddings": Switch(),
    "freeze_layers": Number(0, LAYERS, whole=True, last=True),
    "learning_rate": Number(0, float("inf"), above=True),
}


def read(tmp_path, text, overrides=None, kinds=KINDS):
    path = tmp_path / "space.yaml"
    path.write_text(text, encoding="utf-8")
    return read_space(path, overrides, kinds)


# What a file says ----------------------------------------------------------------------------------------------------


def test_a_file_becomes_distributions(tmp_path):
    space = read(
        tmp_path,
        """
        attention_thresholds: {low: 0, high: 0.9}
        ffn_thresholds: {low: 0, high: 0.8, step: 0.2, layers: same}
        criterion: [wanda, fisher, wanda]
        freeze_embeddings: [false, true]
        freeze_layers: {low: 1, high: -1}
        learning_rate: {low: 1e-5, high: 3e-4, log: true}
        """,
    )
    each = {f"attention_threshold_{layer:02d}": FloatDistribution(0, 0.9) for layer in range(1, LAYERS + 1)}
    assert space.free == each | {
        "ffn_thresholds": FloatDistribution(0, 0.8, step=0.2),
        "criterion": CategoricalDistribution(("wanda", "fisher")),
        "freeze_embeddings": CategoricalDistribution((False, True)),
        "freeze_layers": IntDistribution(1, LAYERS),
        "learning_rate": FloatDistribution(1e-5, 3e-4, log=True),
    }
    assert space.choices("criterion") == ("wanda", "fisher")
    assert space.choices("learning_rate") == space.choices("ffn_threshold_01") == ()


def test_each_layer_has_its_own_range_or_value(tmp_path):
    text = "ffn_thresholds: [0, {low: 0, high: 0.5}, [0.25, 0.5], {low: 0.1, high: 0.9}]"
    assert read(tmp_path, text).free == {
        "ffn_threshold_01": FloatDistribution(0, 0),
        "ffn_threshold_02": FloatDistribution(0, 0.5),
        "ffn_threshold_03": CategoricalDistribution((0.25, 0.5)),
        "ffn_threshold_04": FloatDistribution(0.1, 0.9),
    }
    own, usual = (read(tmp_path, f"ffn_thresholds: {{low: 0, high: 1{end}}}") for end in (", layers: own", ""))
    assert own.free == usual.free
    assert len(own.free) == LAYERS


def test_overrides_take_the_place_of_whole_entries(tmp_path):
    text = "learning_rate: {low: 1e-5, high: 1e-4, log: true}\ncriterion: [wanda, fisher]"
    space = read(tmp_path, text, "{learning_rate: {low: 1e-3, high: 1e-2}, freeze_layers: [0, -1]}")
    assert space.free == {
        "learning_rate": FloatDistribution(1e-3, 1e-2),
        "criterion": CategoricalDistribution(("wanda", "fisher")),
        "freeze_layers": CategoricalDistribution((0, LAYERS)),
    }


def test_one_value_fixes_a_parameter(tmp_path):
    space = read(tmp_path, "criterion: wanda\nfreeze_layers: -1\nffn_thresholds: 0.5\nlearning_rate: [1e-5, 1e-4]")
    trial = optuna.create_study().ask()
    chosen = space.suggest(trial)
    rate = chosen.pop("learning_rate")
    assert chosen == {"criterion": "wanda", "freeze_layers": LAYERS, "ffn_thresholds": [0.5] * LAYERS}
    assert rate in (1e-5, 1e-4)


RANGE = "learning_rate: {low: 1e-5, high: 1e-4}\n"
LISTS = f"accepted are {LAYERS} entries, one for each layer"
REFUSED = {
    "unknown parameter": ("momentum: 0.9", r"unknown parameter 'momentum'; there are attention_thresholds, .*rate"),
    "no high": ("learning_rate: {low: 1e-5}", r"learning_rate: a range needs low and high; accepted are low, high"),
    "no ends": ("learning_rate: {}", r"learning_rate: a range needs low and high"),
    "unknown key": ("learning_rate: {low: 1e-5, high: 1, scale: log}", r"unknown 'scale'; accepted are low, high"),
    "inverted": ("learning_rate: {low: 1e-4, high: 1e-5}", r"from 0.0001 to 1e-05 is empty; low must not be above"),
    "inverted, whole": ("freeze_layers: {low: -1, high: 2}", r"freeze_layers: the range from 4 to 2 is empty"),
    "another depth": ("ffn_thresholds: [0, 0.5, {low: 0, high: 1}]", rf"ffn_thresholds: a list for 3 layers; {LISTS}"),
    "no layers": ("ffn_thresholds: []", rf"a list for 0 layers; {LISTS}"),
    "how layers share": ("ffn_thresholds: {low: 0, high: 1, layers: all}", r"layers: 'all'; accepted are same, own"),
    "above the highest": ("ffn_thresholds: {low: 0, high: 1.5}", r"thresholds: 1.5; accepted are numbers from 0 to 1"),
    "below the lowest": ("freeze_layers: [-2, 1]", r"freeze_layers: -2; accepted are whole numbers from 0 to 4"),
    "in one layer": ("ffn_thresholds: [0, 0, 7, 0]", r"ffn_thresholds, layer 3: 7; accepted are numbers from 0 to 1"),
    "the lowest itself": ("learning_rate: {low: 0, high: 1e-4}", r"learning_rate: 0; accepted are numbers above 0$"),
    "no whole number": ("freeze_layers: [1, 1.5]", r"freeze_layers: 1.5; accepted are whole numbers from 0 to 4"),
    "no number": ("learning_rate: [1e-5, fast]", r"learning_rate: 'fast'; accepted are numbers above 0"),
    "nothing": ("learning_rate:", r"learning_rate: None; accepted are numbers above 0"),
    "not a number": ("learning_rate: [.nan, 1]", r"learning_rate: nan; accepted are numbers above 0"),
    "a switch for a number": ("freeze_layers: {low: true, high: 2}", r"True; accepted are whole numbers from 0 to 4"),
    "logarithm of 0": ("ffn_thresholds: {low: 0, high: 1, log: true}", r"low 0.0 with log: true; accepted .* above 0"),
    "no step": ("learning_rate: {low: 0.1, high: 1, step: 0}", r"step: 0; accepted are numbers above 0"),
    "a step of a logarithm": ("learning_rate: {low: 0.1, high: 1, step: 0.1, log: true}", r"step 0.1; .* without log"),
    "an empty list": ("learning_rate: []", r"learning_rate: an empty list"),
    "no words": ("criterion: []", r"criterion: nothing; accepted are fisher, wanda, magnitude"),
    "unknown word": ("criterion: [fisher, taylor]", r"criterion: 'taylor'; accepted are fisher, wanda, magnitude"),
    "a range of words": ("criterion: {low: 0, high: 1}", r"criterion: {.*}; accepted are fisher, wanda, magnitude"),
    "a number for a switch": ("freeze_embeddings: [0, 1]", r"freeze_embeddings: 0; accepted are false, true"),
    "a word for a switch": ("freeze_embeddings: 'yes'", r"freeze_embeddings: 'yes'; accepted are false, true"),
    "no mapping": ("- learning_rate", r"accepted is a YAML mapping of parameters to ranges"),
    "nothing at all": ("", r"accepted is a YAML mapping"),
    "no YAML": ("learning_rate: {low: 1,\n- 2", r"is no YAML: "),
    "all fixed": ("learning_rate: 1e-5\ncriterion: [fisher]\nffn_thresholds: 0.5", r"every parameter is fixed"),
    "no parameters": ("{}", r"every parameter is fixed, so that there is nothing to choose"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_chosen_from_is_refused_in_one_line(tmp_path, name):
    text, said = REFUSED[name]
    with pytest.raises(InputError, match=said) as error:
        read(tmp_path, text)
    assert len(str(error.value).splitlines()) == 1
    assert "space.yaml" in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("{momentum: 1}", r"unknown parameter 'momentum'"),
        ("{learning_rate: {low: 1", r"^--space_overrides is no YAML: "),
        ("learning_rate", r"^--space_overrides: accepted is a YAML mapping"),
        ("{learning_rate: 1e-5}", r"every parameter is fixed"),
    ],
)
def test_overrides_are_checked_alike(tmp_path, overrides, said):
    with pytest.raises(InputError, match=said) as error:
        read(tmp_path, RANGE, overrides)
    assert len(str(error.value).splitlines()) == 1


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "latin.yaml").write_bytes("criterion: é".encode("latin-1"))
    for name in ("absent.yaml", "latin.yaml", ""):
        with pytest.raises(InputError, match=r"^--space '.*' cannot be read: .") as error:
            read_space(tmp_path / name, None, KINDS)
        assert len(str(error.value).splitlines()) == 1


# Values there and back -----------------------------------------------------------------------------------------------

eighths = st.integers(0, 8).map(lambda i: i / 8)  # floats without rounding
shares = st.floats(0, 1)


@st.composite
def float_ranges(draw):
    low, high = sorted((draw(eighths), draw(eighths)))
    step = draw(st.sampled_from([None, 0.125, 0.25]))
    if step:
        high = low + (high - low) // step * step  # as Optuna itself would cut it
    return FloatDistribution(low, high, step=step)


@st.composite
def spaces(draw, ranges=None):
    """Any space of `KINDS`, all parameters or some."""
    ranges = ranges if ranges is not None else float_ranges()
    free = {}
    for name in ("attention_thresholds", "ffn_thresholds"):
        how = draw(st.sampled_from(["own", "same", "none"]))
        if how == "own":
            free |= {layer_name(name, layer): draw(ranges) for layer in range(1, LAYERS + 1)}
        if how == "same":
            free[name] = draw(ranges)
    if draw(st.booleans()):
        words = draw(st.lists(st.sampled_from(KINDS["criterion"].accepted), min_size=1, unique=True))
        free["criterion"] = CategoricalDistribution(tuple(words))
    if draw(st.booleans()):
        free["freeze_embeddings"] = CategoricalDistribution((False, True))
    if draw(st.booleans()):
        low, high = sorted((draw(st.integers(1, LAYERS)), draw(st.integers(1, LAYERS))))
        free["freeze_layers"] = draw(
            st.sampled_from([IntDistribution(low, high), IntDistribution(low, high, log=True)])
        )
    if draw(st.booleans()):
        free["learning_rate"] = FloatDistribution(1e-5, 1e-3, log=True)
    return Space(free, KINDS)


def contains(distribution, value):
    return distribution._contains(distribution.to_internal_repr(value))


@given(spaces(), st.integers(0, 2**31))
def test_what_a_trial_has_is_what_its_params_say(space, seed):
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed)).ask()
    chosen = space.suggest(trial)
    assert set(trial.params) == set(space.free)
    assert all(contains(space.free[name], value) for name, value in trial.params.items())
    assert space.gather(trial.params) == chosen
    for name, value in chosen.items():
        kind = KINDS[name]
        if not isinstance(kind, PerLayer):
            assert value == trial.params[name]
        elif name in space.free:
            assert value == [trial.params[name]] * LAYERS
        else:
            assert value == [trial.params[layer_name(name, layer)] for layer in range(1, LAYERS + 1)]
    assert space.scatter(chosen) == trial.params  # as a trial that is queued


values = st.one_of(st.floats(-2, 2), shares, st.integers(-3, 9))
wanted_values = st.fixed_dictionaries(
    {},
    optional={
        "attention_thresholds": st.lists(values, min_size=1, max_size=7),
        "ffn_thresholds": st.lists(values, min_size=1, max_size=7),
        "freeze_layers": st.integers(-3, 9),
        "learning_rate": values,
        "freeze_embeddings": st.booleans(),
    },
)


@given(spaces(), wanted_values)
def test_every_scattered_value_is_the_nearest_of_its_range(space, wanted):
    params = space.scatter(wanted)
    expected = {}
    for name, value in wanted.items():
        layers = interpolated(value, LAYERS) if isinstance(KINDS[name], PerLayer) else []
        at = {layer_name(name, layer): one for layer, one in enumerate(layers, start=1)}
        at |= {name: float(np.mean(layers)) if layers else value}
        expected |= {key: one for key, one in at.items() if key in space.free}
    assert set(params) == set(expected)  # what the space does not have is left to the options
    for key, value in params.items():
        distribution = space.free[key]
        assert contains(distribution, value)
        if isinstance(distribution, CategoricalDistribution):
            assert value is expected[key]
            continue
        assert isinstance(value, int if isinstance(distribution, IntDistribution) else float)
        steps = round((distribution.high - distribution.low) / distribution.step) if distribution.step else 0
        grid = [distribution.low + i * distribution.step for i in range(steps + 1)] if steps else []
        nearest = min(grid or [distribution.low, distribution.high], key=lambda one: abs(one - expected[key]))
        inside = not grid and distribution.low <= expected[key] <= distribution.high
        assert abs(value - expected[key]) == (0 if inside else pytest.approx(abs(nearest - expected[key])))


def test_steps_that_are_no_binary_fractions_end_within_the_range():
    space = Space({"learning_rate": FloatDistribution(0.1, 0.7, step=0.1)}, KINDS)
    assert 0.1 + 6 * 0.1 > 0.7
    found = [space.scatter({"learning_rate": value / 100})["learning_rate"] for value in range(5, 80)]
    assert max(found) == 0.7
    assert all(contains(space.free["learning_rate"], value) for value in found)


def test_a_word_that_is_not_among_the_choices_is_no_trial():
    space = Space({"criterion": CategoricalDistribution(("wanda", "fisher"))}, KINDS)
    assert space.scatter({"criterion": "fisher"}) == {"criterion": "fisher"}
    assert space.scatter({"criterion": "magnitude", "ffn_thresholds": [0.5]}) is None
    assert space.scatter({"ffn_thresholds": [0.5], "freeze_embeddings": True}) == {}


def test_lists_of_another_depth_are_stretched():
    assert interpolated([0, 1], 5) == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert interpolated([0, 1, 0], 5) == pytest.approx([0, 0.5, 1, 0.5, 0])
    assert interpolated([0, 0, 0.25, 0.875], 2) == [0, 0.875]
    assert interpolated([0.5], 3) == [0.5] * 3


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=9), st.integers(1, 12))
def test_stretching_keeps_the_ends_and_the_order(numbers, layers):
    found = interpolated(numbers, layers)
    assert len(found) == layers
    assert found[-1] == numbers[-1]
    assert layers == 1 or found[0] == numbers[0]
    assert min(numbers) - 1e-12 <= min(found) <= max(found) <= max(numbers) + 1e-12
    assert interpolated(numbers, len(numbers)) == pytest.approx(numbers)
    if layers > 1:
        assert interpolated(numbers[::-1], layers)[::-1] == pytest.approx(found)
        line = np.linspace(numbers[0], numbers[-1], len(numbers)).tolist()  # of a straight line, a straight line
        assert interpolated(line, layers) == pytest.approx(np.linspace(line[0], line[-1], layers), abs=1e-9)
    ordered = interpolated(sorted(numbers), layers)
    assert ordered == pytest.approx(sorted(ordered))


def test_an_option_that_trials_choose_is_refused():
    class Config(SimpleNamespace):
        criterion, ffn_thresholds, freeze_embeddings, other = "fisher", None, False, 1

    space = Space(
        {"criterion": CategoricalDistribution(("wanda",)), "ffn_threshold_01": FloatDistribution(0, 1)}
        | {"freeze_embeddings": CategoricalDistribution((False, True))},
        KINDS,
    )
    names = ("criterion", "ffn_thresholds", "freeze_embeddings", "freeze_layers")
    space.check_free(Config(), names)
    space.check_free(Config(freeze_layers=3, other=2), names[:3])
    for option, given_value, said in (
        ("criterion", "wanda", "wanda"), ("ffn_thresholds", "0.5", "0.5"), ("freeze_embeddings", True, "true"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=rf"^--{option} {given_value!r}: the trials choose it; .*") as error:
            space.check_free(Config(**{option: given_value}), names)
        assert f"--space_overrides '{{{option}: {said}}}'" in str(error.value)


# All values ----------------------------------------------------------------------------------------------------------


@given(spaces())
def test_a_grid_has_every_value_of_every_range(space):
    loose = [
        name for name, of in space.free.items()
        if not isinstance(of, CategoricalDistribution) and not of.single() and (not of.step or of.log)
    ]  # fmt: skip
    if loose:
        with pytest.raises(InputError, match=r"^--sampler grid: \w+ is a range without steps; give it step") as error:
            space.grid()
        assert any(f" {name} is" in str(error.value) for name in loose)
        return
    grid = space.grid()
    assert set(grid) == set(space.free)
    for name, found in grid.items():
        distribution = space.free[name]
        assert len(set(found)) == len(found)
        assert all(contains(distribution, value) for value in found)
        if isinstance(distribution, CategoricalDistribution):
            assert tuple(found) == distribution.choices
        else:
            assert (found[0], found[-1]) == (distribution.low, distribution.high)
            assert np.diff(found) == pytest.approx([distribution.step or 0] * (len(found) - 1))
            assert all(isinstance(value, int) == isinstance(distribution, IntDistribution) for value in found)


def test_what_is_kept_of_a_space_tells_it_from_others():
    """As JSON, with the study: by it another command sees whether its space is the same."""
    different = [
        FloatDistribution(0.1, 1), FloatDistribution(0.2, 1), FloatDistribution(0.1, 0.9),
        FloatDistribution(0.1, 1, log=True), FloatDistribution(0.1, 1, step=0.1), FloatDistribution(0, 0),
        IntDistribution(1, 4), IntDistribution(0, 4), IntDistribution(1, 4, log=True), IntDistribution(0, 4, step=2),
        CategoricalDistribution((0.1, 1)), CategoricalDistribution((0.1,)), CategoricalDistribution((False, True)),
    ]  # fmt: skip
    shown = [Space({"learning_rate": one}, KINDS).to_dict() for one in different]
    kept = json.loads(json.dumps(shown))
    assert kept == shown
    assert all((kept[i] == shown[j]) == (i == j) for i in range(len(shown)) for j in range(len(shown)))
    free = {"learning_rate": different[0], "criterion": CategoricalDistribution(("wanda",))}
    assert Space(dict(reversed(free.items())), KINDS).to_dict() == Space(free, KINDS).to_dict()
