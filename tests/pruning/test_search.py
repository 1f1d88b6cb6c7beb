"""From a dense model and texts to a pruned one: the best of what was tried is chosen, and what is said of it is so."""

import copy
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset

from bertdyn.data.batching import model_inputs
from bertdyn.errors import InputError
from bertdyn.pruning.agreement import Referee
from bertdyn.pruning.calibration import calibration_rows
from bertdyn.pruning.changes import between_states
from bertdyn.pruning.compensation import METHODS, compensate
from bertdyn.pruning.config import CRITERIA, PruningConfig
from bertdyn.pruning.cost import flop_costs, parameter_costs
from bertdyn.pruning.plan import identity
from bertdyn.pruning.scores import Evidence, comparable, unit_scores
from bertdyn.pruning.search import Calibration, apply, look, search
from bertdyn.pruning.shape import Site, projection, shape_of
from bertdyn.pruning.statistics import gate_gradients, input_moments
from bertdyn.pruning.surgery import prune
from bertdyn.pruning.targets import plan_maker
from bertdyn.pruning.thresholds import by_ratios, by_thresholds
from bertdyn.tasks.classification import Classification
from bertdyn.tasks.question_answering import QuestionAnswering
from tests.pruning.models import batch, load, outputs, random_plan

TASK = Classification()
SINGLE = [criterion for criterion in CRITERIA if criterion != "auto"]


def texts(model, count, seed):
    """Batches with labels, in an order of their own."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for i in range(count):
        lengths = torch.randint(3, 12, (8,), generator=generator).tolist()
        labels = torch.randint(2, (8,), generator=generator)
        found.append(
            batch(model, lengths, seed + i) | {"labels": labels, "index": torch.arange(8 * i, 8 * i + 8).flip(0)}
        )
    return found


def calibration(model, other_state=None):
    fit = texts(model, 3, 100)
    return Calibration(fit, fit, Referee(model, texts(model, 2, 200), TASK), TASK, other_state, seed=1)


@cache
def dense_of(folder):
    return load(folder)


@pytest.fixture
def dense(checkpoints):
    """A tiny BERT, which must be the same afterwards."""
    model = dense_of(checkpoints["bert"])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    yield model
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def other_state_of(model):
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return other


def maker(model, **options):
    return plan_maker(PruningConfig(**options), shape_of(model), flop_costs(shape_of(model)))


def one_head(costs):
    """The largest unit: what a budget may leave over."""
    return costs.block("attention", 1) - costs.block("attention", 0)


def same_weights(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("criterion", SINGLE)
def test_every_criterion_gives_a_model_within_the_budget(dense, criterion):
    looked = calibration(dense, other_state_of(dense) if criterion == "state_change" else None)
    found = search(dense, looked, criterion, maker(dense, budget=0.6))
    shape, costs = shape_of(dense), flop_costs(shape_of(dense))
    assert found.criteria[-1] == criterion
    assert shape_of(found.model) == found.plan.result
    assert 0 <= 0.6 * costs.of(shape) - costs.of(found.plan.result) < one_head(costs)
    assert found.kl == looked.referee.kl(found.model) > 0
    assert found.tried == {}
    assert set(found.scores) == set(shape.sites)
    assert set(found.methods) == {site for site in shape.sites if len(found.plan.kept[site]) < shape.units(site)}


def test_scores_are_those_that_the_plan_is_made_from(dense):
    other = other_state_of(dense)
    looked, shape = calibration(dense, other), shape_of(dense)
    ratios = {"attention": [0.5] * 3, "ffn": [0.5] * 3}
    make_plan = maker(dense, attention_keep_ratios="0.5", ffn_keep_ratios="0.5")
    means = {site: of.mean for site, of in input_moments(dense, looked.fit).items()}
    gradients = {
        "none": gate_gradients(dense, looked.fit, TASK),
        "mean": gate_gradients(dense, looked.fit, TASK, centres=means),
    }
    for compensation in ("none", "mean"):  # gates are closed to what will be left
        expected = {
            "state_change": Evidence(changes={"state_change": between_states(dense, other, looked.fit)}),
            "taylor": Evidence(gradients=gradients[compensation]),
            "random": Evidence(),
        }
        for criterion, evidence in expected.items():
            scores = unit_scores(criterion, dense, evidence, seed=1)
            found = search(dense, looked, criterion, make_plan, compensation=compensation)
            for site in shape.sites:
                torch.testing.assert_close(found.scores[site], scores[site], rtol=1e-6, atol=0)
            assert found.plan == by_ratios(shape, scores, ratios)
    site = Site("ffn", 1)
    assert not torch.allclose(gradients["none"].absolute[site], gradients["mean"].absolute[site], rtol=0.01)


@pytest.mark.parametrize("compensation", ["auto", *METHODS])
def test_the_whole_budget_is_the_dense_model(dense, compensation):
    found = search(dense, calibration(dense), "fisher", maker(dense, budget=1), compensation=compensation, rounds=2)
    assert found.kl == 0
    assert found.plan == identity(shape_of(dense))
    assert same_weights(found.model, dense)
    inputs = model_inputs(texts(dense, 1, 300)[0])
    assert torch.equal(outputs(found.model, inputs)[0], outputs(dense, inputs)[0])


def test_auto_takes_the_criterion_whose_model_is_nearest(dense):
    looked, make_plan = calibration(dense, other_state_of(dense)), maker(dense, budget=0.5)
    found = search(dense, looked, "auto", make_plan, compensation="mean")
    assert set(found.tried) == set(SINGLE) - {"random"}
    for criterion, kl in found.tried.items():
        assert search(dense, looked, criterion, make_plan, compensation="mean").kl == kl
    assert found.criteria[-1] == min(found.tried, key=found.tried.get)
    assert found.kl == found.tried[found.criteria[-1]] == looked.referee.kl(found.model)
    assert len(set(found.tried.values())) == len(found.tried)
    without = search(dense, calibration(dense), "auto", make_plan, compensation="mean")
    assert set(without.tried) == set(SINGLE) - {"random", "state_change"}


def test_compensation_by_block_is_nearer_than_the_same_everywhere(dense):
    looked, better = calibration(dense), 0
    moments = input_moments(dense, looked.fit, covariance=True)
    for seed in range(3):
        plan = random_plan(shape_of(dense), seed)
        found = apply(look(dense, looked, "auto"), plan, compensation="auto")
        uniform = [apply(look(dense, looked, method), plan, compensation=method) for method in METHODS]
        assert found.kl <= min(one.kl for one in uniform)
        assert found.kl == looked.referee.kl(found.model)
        better += found.kl < min(one.kl for one in uniform)
        projections = {}
        for site, method in found.methods.items():
            own, inputs = projection(dense, site), plan.inputs(site)
            projections[site] = compensate(own.weight.detach(), own.bias.detach(), inputs, moments[site], method)
        assert same_weights(found.model, prune(dense, plan, projections))  # the model is what is said of it
        for one, method in zip(uniform, METHODS, strict=True):
            assert set(one.methods.values()) == {method}
    assert better
    magnitude = [
        search(dense, looked, "magnitude", maker(dense, budget=0.5), compensation=c).kl for c in ("auto", *METHODS)
    ]
    assert magnitude[0] <= min(magnitude[1:])


@pytest.mark.parametrize("criterion", ["fisher", "auto"])
def test_rounds_end_where_one_step_does(dense, criterion):
    costs, looked = flop_costs(shape_of(dense)), calibration(dense, other_state_of(dense))
    make_plan, seen = maker(dense, budget=0.4), []

    def spying(shape, scores, name, progress):
        plan = make_plan(shape, scores, name, progress)
        seen.append((progress, costs.of(shape), costs.of(plan.result)))
        return plan

    found = search(dense, looked, criterion, spying, compensation="none", rounds=3)
    whole = costs.of(shape_of(dense))
    for progress, before, after in seen:
        share = 1 - 0.6 * progress
        assert share * whole < before
        assert -1e-6 <= share * whole - after < one_head(costs)
    assert sorted({progress for progress, *_ in seen}) == pytest.approx([1 / 3, 2 / 3, 1])
    # In the numbering of the dense model: at once or in rounds, the same units are left.
    assert found.plan.shape == shape_of(dense)
    assert shape_of(found.model) == found.plan.result
    assert same_weights(found.model, prune(dense, found.plan))
    assert set(found.scores) == set(shape_of(dense).sites)
    assert all(len(values) == shape_of(dense).units(site) for site, values in found.scores.items())
    if criterion == "auto":  # another state is cut alike, and so can be compared in every round
        assert "state_change" in found.tried
        assert found.criteria[-1] == min(found.tried, key=found.tried.get)


def test_rounds_look_at_what_is_left(dense):
    """Else, they would be one step."""
    looked, make_plan = calibration(dense), maker(dense, budget=0.4)
    once, thrice = (search(dense, looked, "fisher", make_plan, rounds=rounds) for rounds in (1, 3))
    assert once.plan != thrice.plan
    for site in shape_of(dense).sites:
        assert torch.equal(once.scores[site], thrice.scores[site])
    assert thrice.kl == looked.referee.kl(thrice.model)


@pytest.mark.parametrize("family", ["albert", "flaubert"])
def test_other_families(checkpoints, family):
    model = load(checkpoints[family])
    looked = calibration(model)
    found = search(model, looked, "fisher", maker(model, budget=0.6), rounds=2)
    assert shape_of(found.model) == found.plan.result
    assert found.kl == looked.referee.kl(found.model)
    whole = search(model, looked, "fisher", maker(model, budget=1))
    assert whole.kl == 0
    assert same_weights(whole.model, model)


# How much stays ------------------------------------------------------------------------------------------------------


def test_thresholds_and_ratios_as_options(dense):
    shape = shape_of(dense)
    scores = {
        site: torch.rand(shape.units(site), generator=torch.Generator().manual_seed(2)).double() for site in shape.sites
    }
    made = maker(dense, attention_thresholds="0,0,0.9", ffn_thresholds="0.5")(shape, scores, "magnitude", 1.0)
    least = {"attention": [0, 0, 0.9], "ffn": [0.5] * 3}
    assert made == by_thresholds(shape, scores, least, "quantile")
    assert made.result.neurons == (32, 32, 32)
    assert made.result.heads == (4, 4, 1)
    options = {"attention_thresholds": "0,0,9", "ffn_thresholds": "0.5", "threshold_kind": "absolute"}
    absolute = maker(dense, **options, allow_empty=True, round_to=16)(shape, scores, "magnitude", 1.0)
    assert absolute.result.heads == (4, 4, 0)
    assert all(count % 16 == 0 for count in absolute.result.neurons)
    for site in shape.sites:
        if site.kind == "ffn":
            assert set((scores[site] >= 0.5).nonzero()[:, 0].tolist()) <= set(absolute.kept[site])
    ratios = maker(dense, attention_keep_ratios="0.5", ffn_keep_ratios="1,0.25,0")(shape, scores, "magnitude", 1.0)
    assert (ratios.result.heads, ratios.result.neurons) == ((2, 2, 2), (64, 16, 1))


def test_a_budget_weighs_blocks_by_what_their_scores_say(dense):
    """Scores that are no losses are shares of their block: a block of large numbers is not worth more."""
    shape, costs = shape_of(dense), parameter_costs(shape_of(dense))
    make_plan = plan_maker(PruningConfig(budget=0.5, budget_of="parameters"), shape, costs)
    generator = torch.Generator().manual_seed(4)
    scores = {site: torch.rand(shape.units(site), generator=generator).double() for site in shape.sites}
    scaled = {site: values * 10.0**site.layer for site, values in scores.items()}
    assert make_plan(shape, scores, "magnitude", 1.0) == make_plan(shape, scaled, "magnitude", 1.0)
    losses = make_plan(shape, scaled, "fisher", 1.0)
    assert losses != make_plan(shape, scaled, "magnitude", 1.0)
    assert sum(losses.result.neurons[:2]) < losses.result.neurons[2]
    assert costs.of(losses.result) <= 0.5 * costs.of(shape)
    assert comparable(scores, "fisher") is scores


def test_what_does_not_fit_the_layers_is_refused(checkpoints, dense):
    with pytest.raises(InputError, match=r"^--ffn_thresholds has 2 numbers: accepted are 3"):
        maker(dense, attention_thresholds="0.5", ffn_thresholds="0.5,0.1")
    with pytest.raises(InputError, match=r"^--attention_keep_ratios has 4 numbers: accepted are 3"):
        maker(dense, attention_keep_ratios="1,1,1,1", ffn_keep_ratios="1")
    albert = load(checkpoints["albert"])
    with pytest.raises(
        InputError, match=r"^--attention_thresholds has 3 numbers: accepted are 1 .* share their weights"
    ):
        maker(albert, attention_thresholds="0,0,0.5", ffn_thresholds="0.5")
    with pytest.raises(InputError, match=r"^--allow_empty true: .*share their weights.* accepted is false$"):
        maker(albert, allow_empty=True)


# Who judges, and with which texts ------------------------------------------------------------------------------------


def test_the_referee_says_how_near_each_text_is(dense):
    pruned, batches = prune(dense, random_plan(shape_of(dense), seed=3)), texts(dense, 2, 50)
    found = Referee(dense, batches, TASK).agreement(pruned.train())
    assert pruned.training
    pruned.eval()
    for whole in batches:
        for i, index in enumerate(whole["index"]):
            text = {name: value[i : i + 1] for name, value in model_inputs(whole).items()}
            p, q = (F.log_softmax(outputs(model, text)[0][0], dim=-1) for model in (dense, pruned))
            assert found.kl[index] == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-3, abs=1e-6)
            assert found.same[index] == (p.argmax() == q.argmax())
    assert Referee(dense, batches, TASK).kl(pruned) == pytest.approx(found.kl.mean())
    assert Referee(dense, batches, TASK).kl(dense) == 0
    assert Referee(dense, batches, TASK).agreement(dense).same.all()


def test_the_referee_of_questions_adds_start_and_end(checkpoints):
    model = load(checkpoints["bert"], "question-answering")
    pruned = prune(model, random_plan(shape_of(model), seed=3))
    whole = batch(model) | {"context_start": torch.tensor([3, 2, 2]), "context_end": torch.tensor([8, 3, 6])}
    found = Referee(model, [whole | {"index": torch.tensor([2, 0, 1])}], QuestionAnswering({}, {})).agreement(pruned)
    for i, index in enumerate((2, 0, 1)):
        text, kl, same = {name: value[i : i + 1] for name, value in model_inputs(whole).items()}, 0.0, True
        open_ = [0, *range(int(whole["context_start"][i]), int(whole["context_end"][i]))]
        for dense, cut in zip(outputs(model, text), outputs(pruned, text), strict=True):
            p, q = (F.log_softmax(logits[0, open_], dim=-1) for logits in (dense, cut))
            kl += float((p.exp() * (p - q)).sum())
            same &= bool(p.argmax() == q.argmax())
        assert found.kl[index] == pytest.approx(kl, rel=1e-3, abs=1e-6)
        assert found.same[index] == same


def train_part(lengths):
    return Dataset.from_dict({"length": lengths, "row": list(range(len(lengths)))})


@pytest.mark.parametrize(("num_texts", "fit", "pairs", "referee"), [(8, 6, 6, 2), (13, 10, 10, 3), (100, 30, 30, 10)])
def test_calibration_texts(num_texts, fit, pairs, referee):
    lengths = np.random.default_rng(0).integers(3, 30, size=60).tolist()
    lengths[:40], lengths[40:] = [max(n, 10) for n in lengths[:40]], [min(n, 9) for n in lengths[40:]]
    rows = calibration_rows(train_part(lengths), num_texts, min_length=10, seed=4)
    assert (len(rows.fit), len(rows.pairs), len(rows.referee)) == (fit, pairs, referee)
    assert not set(rows.fit["row"]) & set(rows.referee["row"])
    assert set(rows.pairs["row"]) == set(rows.fit["row"])
    assert max([*rows.fit["row"], *rows.referee["row"]]) < 40  # all are long enough
    assert len({*rows.fit["row"], *rows.referee["row"]}) == fit + referee  # each once
    partners = np.array(rows.pairs["length"][:]).reshape(-1, 2).max(axis=1)
    assert (np.diff(partners) <= 0).all()
    same, other = (calibration_rows(train_part(lengths), num_texts, 10, seed) for seed in (4, 5))
    assert list(same.fit["row"]) == list(rows.fit["row"])
    assert list(other.fit["row"]) != list(rows.fit["row"])


def test_partners_are_texts_of_any_lengths():
    """They are drawn; sorting texts by length first would make partners alike."""
    lengths = [10] * 200 + [20] * 200
    pairs = np.array(calibration_rows(train_part(lengths), 400, 0, 0).pairs["length"][:]).reshape(-1, 2)
    assert 0.3 < (pairs[:, 0] != pairs[:, 1]).mean() < 0.7


def test_too_few_long_texts_are_refused():
    with pytest.raises(InputError, match=r"^--calibration_min_length 20: 7 training texts are that long"):
        calibration_rows(train_part([20] * 7 + [5] * 50), 32, 20, 0)


@pytest.mark.parametrize("compensation", ["none", "mean"])
def test_what_training_changed_does_not_depend_on_what_was_repaired(dense, compensation):
    seen, make_plan = [], maker(dense, budget=0.4)

    def spying(shape, scores, name, progress):
        seen.append((scores, make_plan(shape, scores, name, progress)))
        return seen[-1][1]

    looked = calibration(dense, other_state_of(dense))
    search(dense, looked, "state_change", spying, compensation=compensation, rounds=2)
    (before, first), (after, _) = seen
    for site, units in first.kept.items():
        assert torch.equal(after[site], before[site][list(units)])
