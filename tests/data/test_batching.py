"""Batches: minimal padding, and an order that depends on seed and epoch only."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration

from bertdyn.data.batching import make_batches, model_inputs
from bertdyn.data.config import PARTS, DataConfig
from bertdyn.data.loading import load_data
from bertdyn.data.tokenization import tokenize_parts


@pytest.fixture
def dataset(tokenizer, tmp_path):
    limits = {f"max_{part}_samples": 50 for part in PARTS}
    return tokenize_parts(load_data(DataConfig(**limits)), tokenizer, 32, tmp_path)["train"]


def prepared(dataset, tokenizer, seed):
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True))
    return accelerator, accelerator.prepare(make_batches(dataset, tokenizer, 8, shuffle=True, seed=seed))


def order(loader):
    return [batch["index"].tolist() for batch in loader]


def flat(batches):
    return [row for batch in batches for row in batch]


def test_batches_hold_the_rows_padded_to_the_longest(dataset, tokenizer):
    for batch in make_batches(dataset, tokenizer, 8, shuffle=True, seed=0):
        assert set(batch) == {"input_ids", "token_type_ids", "attention_mask", "labels", "index"}
        assert batch["input_ids"].shape == batch["attention_mask"].shape == batch["token_type_ids"].shape
        assert batch["attention_mask"].sum(dim=1).max() == batch["input_ids"].shape[1]
        for row, ids, mask, label in zip(
            batch["index"], batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True
        ):
            stored = dataset[int(row)]
            assert ids[mask.bool()].tolist() == stored["input_ids"]
            assert int(label) == stored["label"]
            assert (ids[~mask.bool()] == tokenizer.pad_token_id).all()


def test_model_inputs_are_what_forward_takes(dataset, tokenizer):
    batch = next(iter(make_batches(dataset, tokenizer, 8, shuffle=False)))
    inputs = model_inputs(batch)
    assert set(inputs) == set(tokenizer.model_input_names)
    assert all(value is batch[name] for name, value in inputs.items())
    assert {"index", "labels"} < set(batch), "the batch itself stays whole"


def test_evaluation_order_is_longest_first_and_complete(dataset, tokenizer):
    rows = flat(order(make_batches(dataset, tokenizer, 8, shuffle=False)))
    lengths = [dataset[row]["length"] for row in rows]
    assert sorted(rows) == list(range(50))
    assert lengths == sorted(lengths, reverse=True)
    assert len(set(lengths)) > 1


def test_epoch_order_depends_on_seed_and_epoch_only(dataset, tokenizer):
    torch.manual_seed(1)
    _, loader = prepared(dataset, tokenizer, seed=7)
    epochs = {}
    for epoch in (1, 2, 3):
        loader.set_epoch(epoch)
        epochs[epoch] = order(loader)
        torch.rand(3)
    torch.manual_seed(2)
    _, jumped = prepared(dataset, tokenizer, seed=7)
    jumped.set_epoch(3)
    assert order(jumped) == epochs[3]
    assert all(sorted(flat(rows)) == list(range(50)) for rows in epochs.values())
    assert epochs[1] != epochs[2] != epochs[3]
    _, neighbour = prepared(dataset, tokenizer, seed=8)
    neighbour.set_epoch(2)
    assert order(neighbour) != epochs[3], "seed + epoch would give neighbouring seeds the same orders"


def test_resume_within_an_epoch(dataset, tokenizer):
    accelerator, loader = prepared(dataset, tokenizer, seed=7)
    loader.set_epoch(3)
    whole = order(loader)
    accelerator, resumed = prepared(dataset, tokenizer, seed=7)
    rest = accelerator.skip_first_batches(resumed, 4)
    rest.set_epoch(3)
    assert order(rest) == whole[4:]


def test_iterating_leaves_the_global_random_state_alone(dataset, tokenizer):
    before = torch.get_rng_state()
    order(make_batches(dataset, tokenizer, 8, shuffle=True, seed=0))
    assert torch.equal(before, torch.get_rng_state())


def test_token_rows_say_where_the_real_tokens_lie(dataset, tokenizer):
    """Only where they are asked for; they count through the flattened batch, and a model is given them."""
    padded = 0
    for batch in make_batches(dataset, tokenizer, 8, shuffle=True, token_rows=True):
        text, position = batch["attention_mask"].nonzero(as_tuple=True)
        assert torch.equal(batch["token_rows"], text * batch["input_ids"].shape[1] + position)
        lengths = [dataset[int(row)]["length"] for row in batch["index"]]
        assert len(batch["token_rows"]) == sum(lengths)
        ids = batch["input_ids"].flatten()[batch["token_rows"]].tolist()
        assert ids == [i for row in batch["index"] for i in dataset[int(row)]["input_ids"]]
        assert model_inputs(batch)["token_rows"] is batch["token_rows"]
        padded += batch["input_ids"].numel() - sum(lengths)
    assert padded > 0, "without padding, all of this would hold for any order"
    assert not any("token_rows" in batch for batch in make_batches(dataset, tokenizer, 8, shuffle=True))
