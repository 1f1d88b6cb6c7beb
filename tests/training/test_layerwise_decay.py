"""Learning rates that fall from the head down: every parameter's own, and nothing else that changes."""

import copy
from collections import Counter

import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification

from bertdyn.errors import InputError
from bertdyn.models.anatomy import EMBEDDING_COMPONENTS, places
from bertdyn.pruning.plan import Plan
from bertdyn.pruning.shape import shape_of
from bertdyn.pruning.surgery import prune
from bertdyn.training.config import TrainingConfig
from bertdyn.training.optimization import make_optimizer, make_scheduler, steps_below_head
from tests.families import FAMILIES, LAYERS

RATE, DECAY = 2.0**-10, 0.5
EMBEDDINGS = ("embedding", "layer_norm_emb")
HEADS = ("classifier", "pre_classifier", "sequence_summary", "qa_outputs", "pooler")


def config(decay=DECAY, **options):
    return TrainingConfig(learning_rate=RATE, layerwise_lr_decay=decay, weight_decay=0.25, **options)


def load(checkpoints, family, auto_class=AutoModelForSequenceClassification):
    return auto_class.from_pretrained(checkpoints[family])


def settings_of(model, optimizer):
    """Parameter name → (rate, weight decay); every parameter is in one group, once."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    count = Counter(id(parameter) for group in optimizer.param_groups for parameter in group["params"])
    assert count == Counter(dict.fromkeys(names, 1))
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_has_the_rate_of_its_depth(checkpoints, family, optimizer):
    model = load(checkpoints, family)
    layers = 1 if family == "albert" else LAYERS  # which shares its layer
    found = settings_of(model, make_optimizer(model, config(optimizer=optimizer)))
    where, depths = places(model), Counter()
    for name, parameter in model.named_parameters():
        place, (rate, decay) = where[name], found[name]
        depth = (
            layers + 1 - place.layer if place.layer else layers + 1 if place.component in EMBEDDING_COMPONENTS else 0
        )
        assert rate == RATE * DECAY**depth, name
        assert decay == (0.25 if parameter.ndim > 1 else 0.0), name
        depths[depth] += 1
        # The same by what checkpoints call them.
        if depth == layers + 1:
            assert any(word in name for word in EMBEDDINGS), name
        assert (depth == 0) == any(word in name for word in HEADS), name
    assert set(depths) == set(range(layers + 2))  # head, layers, embeddings
    assert steps_below_head(model) == {
        name: round(-torch.tensor(found[name][0] / RATE).log2().item()) for name in found
    }


def test_the_layers_of_bert_by_name(checkpoints):
    model = load(checkpoints, "bert", AutoModelForQuestionAnswering)
    found = settings_of(model, make_optimizer(model, config()))
    assert {rate for name, (rate, _) in found.items() if name.startswith("qa_outputs")} == {RATE}
    for layer in range(LAYERS):
        own = {rate for name, (rate, _) in found.items() if f"encoder.layer.{layer}." in name}
        assert own == {RATE * DECAY ** (LAYERS - layer)}
    assert {rate for name, (rate, _) in found.items() if ".embeddings." in name} == {RATE * DECAY ** (LAYERS + 1)}


def test_a_pruned_model_has_the_depths_of_what_is_left(checkpoints):
    """Also of a layer that has neither heads nor neurons any more."""
    dense = load(checkpoints, "bert").eval()
    kept = {site: (0,) if site.layer != 2 else () for site in shape_of(dense).sites}
    model = prune(dense, Plan(shape_of(dense), kept))
    found = settings_of(model, make_optimizer(model, config()))
    before = settings_of(dense, make_optimizer(dense, config()))
    assert found == {name: before[name] for name in found}
    assert any("encoder.layer.1." in name for name in found)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_without_decay_it_is_the_optimizer_of_before(checkpoints, optimizer):
    """Two groups, matrices and vectors: a run that was begun then can be resumed, bit for bit."""
    model = load(checkpoints, "bert").eval()
    same = copy.deepcopy(model)
    matrices = [parameter for parameter in same.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in same.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.25}, {"params": vectors, "weight_decay": 0.0}]
    if optimizer == "sgd":
        before = torch.optim.SGD(groups, lr=RATE, momentum=0.9)
    else:
        before = torch.optim.AdamW(groups, lr=RATE, fused=True)
    assert TrainingConfig().layerwise_lr_decay == 1.0
    now = make_optimizer(model, config(1.0, optimizer=optimizer))
    assert now.state_dict() == before.state_dict()
    assert set(steps_below_head(model)) == {name for name, _ in model.named_parameters()}
    inputs = {"input_ids": torch.randint(5, 90, (2, 6)), "labels": torch.tensor([0, 1])}
    for _ in range(3):
        for each, of in ((model, now), (same, before)):
            each(**inputs).loss.backward()
            of.step()
            of.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))


def test_one_step_moves_each_depth_by_its_rate(checkpoints):
    """Plain SGD moves a parameter by its rate times its gradient."""
    model = load(checkpoints, "bert")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    options = {"optimizer": "sgd", "momentum": 0.0, "learning_rate": 1.0, "weight_decay": 0.0}
    make_optimizer(model, TrainingConfig(layerwise_lr_decay=DECAY, **options)).step()
    for name, steps in steps_below_head(model).items():
        moved = before[name] - model.get_parameter(name).detach()
        torch.testing.assert_close(moved, torch.full_like(moved, DECAY**steps), rtol=0, atol=1e-6)


def test_the_schedule_scales_all_rates_alike_and_the_heads_is_shown(checkpoints):
    model = load(checkpoints, "bert")
    optimizer = make_optimizer(model, config(warmup_ratio=0.5))
    scheduler, peaks = make_scheduler(optimizer, config(warmup_ratio=0.5), 4), settings_of(model, optimizer)
    assert {rate for rate, _ in peaks.values()} == {0.0}  # the warm-up begins
    for share in (0.5, 1.0, 0.5, 0.0):
        optimizer.step()
        scheduler.step()
        now = settings_of(model, optimizer)
        for name, steps in steps_below_head(model).items():
            assert now[name][0] == pytest.approx(share * RATE * DECAY**steps)
        assert scheduler.get_last_lr()[0] == pytest.approx(share * RATE)


@pytest.mark.parametrize("decay", [0.0, -0.5, 1.1, float("nan")])
def test_what_is_no_decay_is_refused(decay):
    with pytest.raises(InputError, match=r"^--layerwise_lr_decay .*: accepted are values above 0, at most 1$"):
        TrainingConfig(layerwise_lr_decay=decay)
