import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bertdyn.errors import InputError
from bertdyn.models.anatomy import places
from bertdyn.training.freezing import FreezeSchedule, Freezing, make_schedule
from bertdyn.training.loop import Progress
from tests.families import FAMILIES, LAYERS


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (FreezeSchedule(2, True), {1: (True, 2), 9: (True, 2)}),
        (FreezeSchedule(2, True, epochs=2), {1: (True, 2), 2: (True, 2), 3: (False, 0)}),
        (
            FreezeSchedule(3, True, epochs=1, gradual=True),
            {1: (True, 3), 2: (True, 2), 3: (True, 1), 4: (True, 0), 5: (False, 0)},
        ),
        (FreezeSchedule(0, True, epochs=2, gradual=True), {2: (True, 0), 3: (False, 0)}),
        (FreezeSchedule(), {1: (False, 0)}),
    ],
)
def test_what_is_frozen_when(schedule, expected):
    assert {epoch: tuple(schedule.frozen(epoch)) for epoch in expected} == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_parts_get_no_gradient_and_the_others_do(checkpoints, family):
    model = AutoModelForSequenceClassification.from_pretrained(checkpoints[family])
    tokenizer = AutoTokenizer.from_pretrained(checkpoints[family])
    frozen_layers = min(2, 1 if family == "albert" else LAYERS)
    listener = Freezing(model, make_schedule(model, frozen_layers, True, 1, False))
    inputs = tokenizer(["the film is good"], return_tensors="pt")

    def trained() -> set:
        model.zero_grad()
        model(**inputs, labels=torch.tensor([1])).loss.backward()
        where = places(model)
        # (RoBERTa-like encoders keep token types and unused rows: a gradient of zero is one, too)
        return {where[name] for name, p in model.named_parameters() if p.grad is not None}

    listener.on_epoch_start(Progress(epoch=1))
    assert all(place.layer is None or place.layer > frozen_layers for place in trained())
    assert not any("embeddings" in place.component for place in trained())
    assert any(place.component == "head" for place in trained())
    listener.on_epoch_start(Progress(epoch=2))
    everything = {place for place in places(model).values() if place.component != "pooler"}
    assert everything <= trained()


def test_frozen_bottom_saves_its_backward_pass(checkpoints):
    """Autograd must not record the frozen layers: the output of the last frozen one needs no gradient."""
    model = AutoModelForSequenceClassification.from_pretrained(checkpoints["bert"])
    inputs = {"input_ids": torch.randint(10, 90, (2, 7)), "attention_mask": torch.ones(2, 7)}
    Freezing(model, FreezeSchedule(2, True)).on_epoch_start(Progress(epoch=1))
    hidden = model(**inputs, output_hidden_states=True).hidden_states
    assert [h.requires_grad for h in hidden] == [False, False, False, True]
    Freezing(model, FreezeSchedule(2, False)).on_epoch_start(Progress(epoch=1))
    hidden = model(**inputs, output_hidden_states=True).hidden_states
    assert all(h.requires_grad for h in hidden)  # trainable embeddings need the way back through all layers


def test_depth_is_checked(checkpoints):
    bert = AutoModelForSequenceClassification.from_pretrained(checkpoints["bert"])
    albert = AutoModelForSequenceClassification.from_pretrained(checkpoints["albert"])
    assert make_schedule(bert, -1, False, 0, False).layers == LAYERS
    with pytest.raises(InputError, match=r"--freeze_layers 4: this bert has 3 layer\(s\); accepted are -1"):
        make_schedule(bert, 4, False, 0, False)
    with pytest.raises(InputError, match="share their weights"):
        make_schedule(albert, 2, False, 0, False)
