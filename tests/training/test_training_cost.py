"""What a freeze schedule saves: the FLOPs that PyTorch itself counts, forward and backward."""

from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForSequenceClassification

from bertdyn.models.anatomy import anatomy_of
from bertdyn.training.freezing import FreezeSchedule, Frozen, apply_freeze, training_cost

DEPTH, EPOCHS = 12, 4


@cache
def model():
    """Narrow but deep; the head is nothing beside it, and embeddings are no matrix products."""
    sizes = {"hidden_size": 32, "intermediate_size": 128, "num_attention_heads": 2, "vocab_size": 50}
    return BertForSequenceClassification(BertConfig(**sizes, num_hidden_layers=DEPTH, attn_implementation="eager"))


@cache
def counted(frozen: Frozen) -> int:
    """FLOPs of one step."""
    apply_freeze(anatomy_of(model()), frozen)
    model().zero_grad()
    inputs = {"input_ids": torch.randint(50, (2, 12)), "labels": torch.tensor([0, 1])}
    with FlopCounterMode(display=False) as counter:
        model()(**inputs).loss.backward()
    return counter.get_total_flops()


SCHEDULES = {
    "nothing": FreezeSchedule(),
    "embeddings": FreezeSchedule(0, True),
    "lower half": FreezeSchedule(6, True),
    "lower half, embeddings learn": FreezeSchedule(6, False),
    "all": FreezeSchedule(12, True),
    "all, embeddings learn": FreezeSchedule(12, False),
    "all, for an epoch": FreezeSchedule(12, True, epochs=1),
    "most, then layer by layer": FreezeSchedule(9, True, epochs=1, gradual=True),
    "two, which are all free before the end": FreezeSchedule(2, True, epochs=1, gradual=True),
    "layer by layer, embeddings learn": FreezeSchedule(12, False, epochs=2, gradual=True),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_cost_of_a_schedule_is_what_pytorch_counts(name):
    schedule, whole = SCHEDULES[name], counted(Frozen(False, 0))
    found = sum(counted(schedule.frozen(epoch)) for epoch in range(1, EPOCHS + 1)) / (EPOCHS * whole)
    assert training_cost(schedule, DEPTH, EPOCHS) == pytest.approx(found, rel=0.03)


def test_nothing_frozen_is_the_whole():
    assert training_cost(FreezeSchedule(), DEPTH, EPOCHS) == 1.0
    assert training_cost(FreezeSchedule(embeddings=True), DEPTH, EPOCHS) == 1.0  # no layer of theirs
    assert training_cost(FreezeSchedule(DEPTH, True), DEPTH, EPOCHS) == pytest.approx(1 / 3)  # the forward pass
    assert training_cost(FreezeSchedule(DEPTH, False), DEPTH, EPOCHS) == pytest.approx(2 / 3)


schedules = st.builds(FreezeSchedule, st.integers(0, DEPTH), st.booleans(), st.integers(0, 5), st.booleans())


@given(schedules, st.integers(1, 8))
def test_what_freezes_more_costs_less(schedule, epochs):
    cost = training_cost(schedule, DEPTH, epochs)
    assert 1 / 3 - 1e-12 <= cost <= 1
    assert (cost == 1) == (schedule.layers == 0)
    if schedule.layers < DEPTH:
        more = FreezeSchedule(schedule.layers + 1, schedule.embeddings, schedule.epochs, schedule.gradual)
        assert training_cost(more, DEPTH, epochs) < cost
    always = FreezeSchedule(schedule.layers, schedule.embeddings)
    assert training_cost(always, DEPTH, epochs) <= cost
    each = [training_cost(FreezeSchedule(*schedule.frozen(epoch)[::-1]), DEPTH, 1) for epoch in range(1, epochs + 1)]
    assert cost == pytest.approx(sum(each) / epochs)
