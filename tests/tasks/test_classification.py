import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bertdyn.data.batching import make_batches
from bertdyn.errors import InputError
from bertdyn.tasks import classification as task

TASK = task.Classification()


def test_metrics_against_numbers_done_by_hand():
    logits = np.log(np.array([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.3, 0.3, 0.4]]))
    labels = np.array([0, 1, 1, 2])
    found = TASK.metrics(task.Predictions(logits, labels))
    assert found["loss"] == pytest.approx(-np.log([0.8, 0.3, 0.5, 0.4]).mean())
    assert found["accuracy"] == 0.75
    # class 0: p 1/2, r 1, f 2/3; class 1: p 1, r 1/2, f 2/3; class 2: 1, 1, 1
    assert found["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert found["weighted_f1"] == pytest.approx((2 / 3 + 2 * 2 / 3 + 1) / 4)
    assert found["macro_precision"] == pytest.approx((0.5 + 1 + 1) / 3)
    assert found["macro_recall"] == pytest.approx((1 + 0.5 + 1) / 3)


def test_reports_cover_classes_that_never_occur():
    predictions = task.Predictions(np.eye(3)[[0, 0, 1]], np.array([0, 1, 1]))
    report = task.class_report(predictions, ["a", "b", "c"]).set_index("label")
    assert report["support"].tolist() == [1, 2, 0]
    confusion = task.confusion(predictions, ["a", "b", "c"])
    assert confusion["count"].sum() == 3
    assert confusion.set_index(["true", "predicted"]).at[("b", "a"), "count"] == 1


def test_interval_is_wilsons():
    # Wilson (1927), as tabulated: 8 of 10 at 95 %
    assert task.accuracy_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_baselines_know_only_the_train_part():
    train = pd.DataFrame({"text": ["good film", "bad film"] * 20 + ["good"], "label": [1, 0] * 20 + [1]})
    test = pd.DataFrame({"text": ["good", "bad", "good", "awful"], "label": [1, 0, 1, 0]})
    found = task.baselines(train, {"test": test})
    assert found["majority"]["test"] == 0.5
    assert found["tfidf"]["test"] >= 0.75


def test_prediction_order_is_that_of_the_examples(checkpoints):
    """Batches run longest first and padded; rows come back by index, as from single texts."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["bert"])
    model = AutoModelForSequenceClassification.from_pretrained(checkpoints["bert"]).train()
    texts = ["good", "a very long sentence about a film that is not good", "the film", "bad bad bad", "so so"]
    ids = tokenizer(texts)["input_ids"]
    rows = Dataset.from_dict(
        {"index": list(range(5)), "input_ids": ids, "label": [1, 0, 1, 0, 1], "length": [len(i) for i in ids]}
    )
    accelerator = Accelerator(cpu=True)
    batches = accelerator.prepare(make_batches(rows, tokenizer, 2, shuffle=False))
    found = TASK.predict(accelerator, model, batches)
    assert model.training
    model.eval()
    with torch.inference_mode():
        alone = torch.cat([model(torch.tensor([i])).logits for i in ids]).numpy()
    np.testing.assert_allclose(found.logits, alone, atol=1e-5)
    assert found.labels.tolist() == [1, 0, 1, 0, 1]


def test_class_weights_balance_the_loss(checkpoints):
    """With balanced weights, two classes of any frequency count the same."""
    labels = pd.Series([0] * 9 + [1])
    weights = task.weights_of_classes("balanced", labels, ["a", "b"])
    assert weights.tolist() == pytest.approx([10 / 18, 10 / 2])
    model = AutoModelForSequenceClassification.from_pretrained(checkpoints["bert"]).eval()
    ids = torch.arange(40).reshape(10, 4) % model.config.vocab_size
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor(labels.tolist())}
    plain = task.Classification().loss
    mean_of_classes = (
        plain(model, {k: v[:9] for k, v in batch.items()}) + plain(model, {k: v[9:] for k, v in batch.items()})
    ) / 2
    torch.testing.assert_close(task.Classification(weights).loss(model, batch), mean_of_classes)
    assert task.weights_of_classes("1,3", labels, ["a", "b"]).tolist() == pytest.approx([1 / 1.2, 3 / 1.2])
    assert task.weights_of_classes(None, labels, ["a", "b"]) is None


def test_class_weights_hold_in_batches_of_one(checkpoints):
    """The mean over single examples is the loss of their batch: accumulation and several processes change nothing."""
    model = AutoModelForSequenceClassification.from_pretrained(checkpoints["bert"]).eval()
    ids = torch.arange(24).reshape(6, 4) % model.config.vocab_size
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, 1, 0, 0, 1, 0])}
    weights = task.weights_of_classes("1,10", pd.Series(batch["labels"]), ["a", "b"])
    loss = task.Classification(weights).loss
    single = [loss(model, {name: tensor[i : i + 1] for name, tensor in batch.items()}) for i in range(6)]
    torch.testing.assert_close(torch.stack(single).mean(), loss(model, batch))
    assert not torch.allclose(loss(model, batch), task.Classification().loss(model, batch))


def test_a_class_without_rows_cannot_be_balanced():
    with pytest.raises(InputError, match="'balanced': no training row has the label 'b'"):
        task.weights_of_classes("balanced", pd.Series([0, 2, 0]), ["a", "b", "c"])


@pytest.mark.parametrize("option", ["1", "1,2,3", "1,0", "1,nan", "even", ""])
def test_class_weights_that_are_none(option):
    with pytest.raises(InputError, match="accepted are 'balanced' or 2 numbers above 0, for a, b"):
        task.weights_of_classes(option, pd.Series([0, 1]), ["a", "b"])
