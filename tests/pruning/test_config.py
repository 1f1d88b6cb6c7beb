"""Options that make no sense are refused in one line: the flag, the value, what is accepted."""

import pytest

from bertdyn.errors import InputError
from bertdyn.pruning.config import BUDGETS, COMPENSATIONS, CONTROLS, CRITERIA, THRESHOLD_KINDS, PruningConfig
from bertdyn.steps.prune_config import PruneConfig

# field, value, what the message says is accepted
NUMBERS = [
    ("cost_length", 0, "from 1"),
    ("cost_batch_size", 0, "from 1"),
    ("pruning_rounds", 0, "from 1"),
    ("round_to", 0, "from 1"),
    ("calibration_examples", 7, "from 8"),
    ("calibration_min_length", -1, "from 0"),
    ("calibration_seed", -1, "from 0"),
    ("budget", 0, "above 0, at most 1"),
    ("budget", 1.01, "above 0, at most 1"),
    ("budget", -0.5, "above 0, at most 1"),
    ("budget", float("nan"), "above 0, at most 1"),
]
CHOICES = [
    ("criterion", "fischer", CRITERIA),
    ("budget_of", "memory", BUDGETS),
    ("threshold_kind", "relative", THRESHOLD_KINDS),
    ("compensation", "bias", COMPENSATIONS),
]
PRUNE_NUMBERS = [
    ("distillation", -0.1, "from 0 to 1"),
    ("distillation", 1.5, "from 0 to 1"),
    ("distillation", float("nan"), "from 0 to 1"),
    ("temperature", 0, "from 0.1"),
    ("temperature", float("inf"), "from 0.1"),
    ("temperature", float("nan"), "from 0.1"),
    ("hidden_distillation", -1, "from 0"),
    ("hidden_distillation", float("inf"), "from 0"),
    ("latency_rounds", 2, "from 3"),
    ("num_train_epochs", 0, "from 1"),
]


def refused(make, **options):
    """The one line that it is refused with."""
    with pytest.raises(InputError) as error:
        make(**options)
    assert "\n" not in str(error.value)
    return str(error.value)


def prune_config(**options):
    return PruneConfig(**{"model_name_or_path": "minilm"} | options)


@pytest.mark.parametrize("make", [PruningConfig, prune_config])
@pytest.mark.parametrize(("name", "value", "accepted"), NUMBERS)
def test_numbers_out_of_range(make, name, value, accepted):
    message = refused(make, **{name: value})
    assert message.startswith(f"--{name} {value}: accepted are ")
    assert message.endswith(accepted)


@pytest.mark.parametrize(("name", "value", "accepted"), PRUNE_NUMBERS)
def test_numbers_of_the_recovery_out_of_range(name, value, accepted):
    message = refused(prune_config, **{name: value})
    assert message.startswith(f"--{name} {value}: accepted are values ")
    assert message.endswith(accepted)


@pytest.mark.parametrize(("name", "value", "accepted"), CHOICES)
def test_choices_that_are_none(name, value, accepted):
    assert refused(PruningConfig, **{name: value}) == f"--{name} {value!r}: accepted are {', '.join(accepted)}"
    for choice in accepted:
        way = {"attention_thresholds": "0", "ffn_thresholds": "0"} if name == "threshold_kind" else {}
        assert getattr(PruningConfig(**{name: choice}, **way), name) == choice


@pytest.mark.parametrize("kind", ["attention", "ffn"])
@pytest.mark.parametrize("value", ["", "0.1,", "half", "0.1;0.2", "nan", "0.1,nan"])
@pytest.mark.parametrize("way", ["thresholds", "keep_ratios"])
def test_lists_that_are_no_numbers(kind, way, value):
    options = {f"attention_{way}": "0.5", f"ffn_{way}": "0.5"} | {f"{kind}_{way}": value}
    message = refused(PruningConfig, **options)
    assert message.startswith(f"--{kind}_{way} {value!r}: accepted are numbers, one a layer or one for all")


@pytest.mark.parametrize("kind", ["attention", "ffn"])
@pytest.mark.parametrize("value", ["1.2", "0.1,-0.1", "inf"])
def test_lists_that_are_no_shares(kind, value):
    for way, words in (("thresholds", "quantiles from 0 to 1"), ("keep_ratios", "shares from 0 to 1")):
        options = {f"attention_{way}": "0.5", f"ffn_{way}": "0.5"} | {f"{kind}_{way}": value}
        message = refused(PruningConfig, **options)
        assert message.startswith(f"--{kind}_{way} {value!r}: accepted are {words}")
    absolute = {"attention_thresholds": "0.5", "ffn_thresholds": "0.5"} | {f"{kind}_thresholds": value}
    config = PruningConfig(threshold_kind="absolute", **absolute)
    assert config.thresholds(kind) == [float(number) for number in value.split(",")]


def test_lists_as_they_are_given():
    config = PruningConfig(attention_thresholds="0, 0,0.3,0.7", ffn_thresholds=0.5)  # YAML gives a number
    assert config.thresholds("attention") == [0, 0, 0.3, 0.7]
    assert config.thresholds("ffn") == [0.5]
    assert config.keep_ratios("ffn") == []


def test_one_way_to_say_how_much_stays():
    thresholds = {"attention_thresholds": "0", "ffn_thresholds": "0.5"}
    ratios = {"attention_keep_ratios": "1", "ffn_keep_ratios": "0.5"}
    for options, words in (
        ({"budget": 0.5} | thresholds, "--budget and thresholds"),
        (thresholds | ratios, "thresholds and keep ratios"),
        ({"budget": 0.5, "plan": "plan.json"}, "--budget and --plan"),
        ({"plan": "plan.json"} | ratios, "keep ratios and --plan"),
    ):
        assert refused(PruningConfig, **options) == f"{words} say twice how much stays: give one of them"
    for options in (thresholds, ratios, {"plan": "plan.json"}):
        assert PruningConfig(**options).target_budget is None
        message = refused(PruningConfig, pruning_rounds=3, **options)
        assert message == "--pruning_rounds 3: accepted with --budget only"
        assert refused(PruningConfig, budget_of="latency", **options).endswith("accepted with --budget only")
    assert refused(PruningConfig, threshold_kind="absolute").endswith("absolute: accepted with thresholds only")
    for name, value in (("criterion", "wanda"), ("round_to", 8)):
        message = refused(PruningConfig, plan="plan.json", **{name: value})
        assert message == f"--{name} {value}: a plan says which units stay; leave it out"
    assert PruningConfig().target_budget == 0.75
    assert PruningConfig(budget=0.5, pruning_rounds=3).target_budget == 0.5
    assert PruningConfig(pruning_rounds=3).target_budget == 0.75


@pytest.mark.parametrize(("way", "keeps_all"), [("thresholds", "0"), ("keep_ratios", "1")])
def test_both_halves_of_a_way(way, keeps_all):
    for given, missing in (("attention", "ffn"), ("ffn", "attention")):
        message = refused(PruningConfig, **{f"{given}_{way}": "0.5"})
        assert message == f"--{given}_{way} needs --{missing}_{way}, too ({keeps_all} keeps all)"


def test_one_source():
    for options in ({}, {"source_run_id": "abc", "model_name_or_path": "minilm"}):
        message = refused(PruneConfig, **options)
        assert "--source_run_id <fine-tune run> or --model_name_or_path <model>" in message
    message = refused(prune_config, criterion="state_change")
    assert message.startswith("--criterion state_change")
    assert message.endswith("give --source_run_id")
    assert PruneConfig(source_run_id="abc", criterion="state_change").criterion == "state_change"


def test_controls():
    assert prune_config().control_list() == list(CONTROLS)
    assert prune_config(controls="none").control_list() == []
    assert prune_config(controls="random, dense").control_list() == ["random", "dense"]
    for value in ("randm", "dense,none", ""):
        assert refused(prune_config, controls=value) == f"--controls {value!r}: accepted are {', '.join(CONTROLS)}"


def test_batches_to_time():
    assert prune_config(latency_shapes="1x32, 16x128").shapes() == [(1, 32), (16, 128)]
    assert prune_config(latency_shapes="none").shapes() == []
    for value in ("32", "1x", "1x2x3", "0x32", "1x-4", "axb", "1x32,none"):
        message = refused(prune_config, latency_shapes=value)
        assert message == f"--latency_shapes {value!r}: accepted are pairs such as '1x32,16x128'"
    assert refused(prune_config, latency_shapes="").startswith("--latency_shapes '': accepted are")


def test_seeds():
    for value in ("1", "0,0", "0,a", "0,-1"):
        message = refused(prune_config, seeds=value)
        assert message.startswith(f"--seeds {value!r}: accepted are at least two different whole numbers")
    message = refused(prune_config, seeds="0,1", register_as="mine")
    assert message.startswith("--register_as with --seeds")
