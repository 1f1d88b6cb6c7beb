"""Predictions and agreement from one pass: what two passes give, and the model is asked half as often."""

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from scipy.special import log_softmax
from transformers import AutoTokenizer

from bertdyn.data.batching import make_batches
from bertdyn.data.windows import make_windows
from bertdyn.models.unpadded import is_unpadded, run_unpadded
from bertdyn.pruning.agreement import Referee
from bertdyn.pruning.shape import shape_of
from bertdyn.pruning.surgery import prune
from bertdyn.tasks.classification import Classification
from bertdyn.tasks.question_answering import QuestionAnswering
from tests.pruning.models import load, random_plan

PART = "validation"
WORDS = (
    "the",
    "film",
    "is",
    "good",
    "bad",
    "and",
    "long",
    "but",
    "this",
    "one",
    "a",
    "plot",
    "of",
    "people",
    "in",
    "house",
)


def texts(chance, count):
    return [" ".join(chance.choice(WORDS, size=chance.integers(3, 25))) for _ in range(count)]


def classification(tokenizer):
    """Texts of all lengths, so that batches are not in the order of the rows."""
    chance = np.random.default_rng(0)
    rows = tokenizer(texts(chance, 23), truncation=True, max_length=30)["input_ids"]
    labels = chance.integers(0, 2, len(rows)).tolist()
    columns = {"input_ids": rows, "length": [len(row) for row in rows], "label": labels, "index": range(len(rows))}
    return Classification(), Dataset.from_dict(columns)


def question_answering(tokenizer):
    """Questions whose contexts take several windows, some without an answer."""
    chance = np.random.default_rng(1)
    contexts = texts(chance, 9)
    answers = [[] if i % 3 == 0 else [context.split()[1]] for i, context in enumerate(contexts)]
    frame = pd.DataFrame(
        {
            "example_id": [f"q{i}" for i in range(len(contexts))],
            "text": "which one ?",
            "text_pair": contexts,
            "label": [int(bool(gold)) for gold in answers],
            "answers": answers,
            "answer_starts": [[c.index(g) for g in gold] for c, gold in zip(contexts, answers, strict=True)],
        }
    )
    windows = make_windows(frame, tokenizer, max_length=16, doc_stride=4)
    assert len(windows) > len(frame)
    return QuestionAnswering({PART: frame}, {PART: windows}), windows


TASKS = {"classification": classification, "question-answering": question_answering}


class Setting:
    """A dense model, one that was cut, and the texts of one part."""

    def __init__(self, folder, head, unpadded=False):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        self.task, self.dataset = TASKS[head](tokenizer)
        self.dense, self.accelerator = load(folder, head, torch.float32), Accelerator(cpu=True)
        batches = make_batches(self.dataset, tokenizer, 4, shuffle=False, token_rows=unpadded)
        self.batches = self.accelerator.prepare(batches)
        if head == "classification":  # else, all texts would have the same class
            self.dense.classifier.weight.data.mul_(20)
            self.dense.classifier.bias.data.sub_(torch.from_numpy(self.predicted(self.dense).logits).mean(dim=0))
        self.pruned = prune(self.dense, random_plan(shape_of(self.dense), seed=3))
        if unpadded:
            for model in (self.dense, self.pruned):
                run_unpadded(model)
                assert is_unpadded(model)
        self.referee = Referee(self.dense, list(batches), self.task)

    def scored(self, model):
        return self.referee.scored(self.accelerator, model, self.batches, PART)

    def predicted(self, model):
        return self.task.predict(self.accelerator, model, self.batches, PART)


def assert_same_predictions(found, expected):
    assert type(found) is type(expected)
    for one, other in zip(found, expected, strict=True):
        if isinstance(one, pd.DataFrame):
            pd.testing.assert_frame_equal(one, other, check_exact=True)
        else:
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("unpadded", [False, True])
@pytest.mark.parametrize("head", TASKS)
@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_one_pass_gives_what_two_give(checkpoints, family, head, unpadded):
    setting = Setting(checkpoints[family], head, unpadded)
    expected, agreement = setting.predicted(setting.pruned), setting.referee.agreement(setting.pruned)
    for _ in range(2):  # the second time, too
        predictions, found = setting.scored(setting.pruned)
        assert_same_predictions(predictions, expected)
        np.testing.assert_array_equal(found.kl, agreement.kl)
        np.testing.assert_array_equal(found.same, agreement.same)
    assert len(found.kl) == len(found.same) == len(setting.dataset)
    if head == "classification":  # each text's, in the order of the rows
        dense = setting.predicted(setting.dense)
        p, q = (log_softmax(made.logits.astype(np.float64), axis=1) for made in (dense, expected))
        np.testing.assert_allclose(found.kl, (np.exp(p) * (p - q)).sum(axis=1), rtol=1e-3, atol=1e-5)
        np.testing.assert_array_equal(found.same, dense.predicted == expected.predicted)
    assert len(np.unique(found.kl)) == len(found.kl)  # a wrong order would show
    assert not found.same.all()
    assert setting.task.metrics(predictions, PART) == setting.task.metrics(expected, PART)


@pytest.mark.parametrize("head", TASKS)
def test_the_dense_model_agrees_with_itself(checkpoints, head):
    setting = Setting(checkpoints["bert"], head)
    predictions, agreement = setting.scored(setting.dense)
    assert_same_predictions(predictions, setting.predicted(setting.dense))
    assert not agreement.kl.any()
    assert agreement.same.all()
    _, other = setting.scored(setting.pruned)
    assert other.kl.mean() > 0.01


@pytest.mark.parametrize("head", TASKS)
def test_the_model_sees_every_batch_once(checkpoints, head):
    setting, seen = Setting(checkpoints["bert"], head), []

    def forward(model, args, inputs, output):
        seen.append(inputs["input_ids"].clone())
        assert not model.training
        assert torch.is_inference_mode_enabled()

    setting.pruned.train()  # dropout would show, too
    handle = setting.pruned.register_forward_hook(forward, with_kwargs=True)
    _, agreement = setting.scored(setting.pruned)
    handle.remove()
    assert len(seen) == len(setting.batches) > 1
    assert all(torch.equal(a, b["input_ids"]) for a, b in zip(seen, setting.batches, strict=True))
    assert setting.pruned.training  # as it was
    np.testing.assert_array_equal(agreement.kl, setting.referee.agreement(setting.pruned).kl)


def test_other_batches_than_the_referees_are_noticed(checkpoints):
    setting = Setting(checkpoints["bert"], "classification")
    batches = list(setting.batches)
    with pytest.raises(ValueError, match=r"zip\(\)"):
        setting.referee.scored(setting.accelerator, setting.pruned, batches[:-1], PART)
