"""The loss with a teacher is its formula, whether padding is computed or not, and the teacher does not learn."""

import copy

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification

from bertdyn.data.batching import model_inputs
from bertdyn.models.unpadded import run_unpadded
from bertdyn.tasks.classification import Classification
from bertdyn.tasks.distillation import Distillation, divergence
from bertdyn.tasks.question_answering import QuestionAnswering
from tests.families import FAMILIES

TASKS = {"classification": Classification(), "question-answering": QuestionAnswering({}, {})}
AUTO = {
    "classification": AutoModelForSequenceClassification,
    "question-answering": AutoModelForQuestionAnswering,
}
LENGTHS = torch.tensor([9, 4, 7])


def models(folder, head="classification"):
    """Teacher and student, dropout off."""
    torch.manual_seed(1)
    found = []
    for _ in range(2):
        model = AUTO[head].from_pretrained(folder).double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        found.append(model)
    return found


def texts(model, token_rows=False):
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(9) < LENGTHS[:, None]
    ids = torch.randint(5, model.config.vocab_size, mask.shape, generator=generator)
    found = {
        "input_ids": ids.masked_fill(~mask, model.config.pad_token_id or 0),
        "attention_mask": mask.long(),
        "labels": torch.tensor([0, 1, 1]),
        "start_positions": torch.tensor([3, 0, 2]),
        "end_positions": torch.tensor([4, 0, 2]),
        "context_start": torch.tensor([3, 2, 2]),
        "context_end": torch.tensor([8, 3, 6]),
        "index": torch.arange(3),
    }
    return found | ({"token_rows": mask.flatten().nonzero().squeeze(1)} if token_rows else {})


def kl_of(teacher, student, batch, head, temperature):
    """Text by text, over what can be chosen."""
    total = 0.0
    for i in range(3):
        text = {name: value[i : i + 1, : LENGTHS[i]] for name, value in model_inputs(batch).items()}
        with torch.no_grad():
            found = [model(**text) for model in (teacher, student)]
        if head == "classification":
            pairs = [[out.logits[0] for out in found]]
        else:
            open_ = [0, *range(int(batch["context_start"][i]), int(batch["context_end"][i]))]
            pairs = [[out[name][0, open_] for out in found] for name in ("start_logits", "end_logits")]
        for expected, given in pairs:
            p, q = (F.softmax(logits / temperature, dim=-1) for logits in (expected, given))
            total += float((p * (p.log() - q.log())).sum()) / len(pairs)
    return total / 3


@pytest.mark.parametrize("head", TASKS)
@pytest.mark.parametrize("unpadded", [False, True])
def test_without_weight_it_is_the_task(checkpoints, head, unpadded):
    teacher, student = models(checkpoints["bert"], head)
    task, batch = TASKS[head], texts(teacher)
    for model in (teacher, student) if unpadded else ():
        run_unpadded(model)
    distilled = Distillation(task, teacher, weight=0, temperature=2)
    assert torch.equal(distilled.loss(student, batch), task.loss(student, batch))
    assert (distilled.name, distilled.selection_metric) == (task.name, task.selection_metric)
    for one, other in zip(
        distilled.log_probabilities(student, batch), task.log_probabilities(student, batch), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("head", TASKS)
@pytest.mark.parametrize("weight", [0.3, 1.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_answers_are_weighed_by_the_formula(checkpoints, head, weight, temperature):
    teacher, student = models(checkpoints["bert"], head)
    task, batch = TASKS[head], texts(teacher)
    expected = (1 - weight) * task.loss(student, batch).item()
    expected += weight * temperature**2 * kl_of(teacher, student, batch, head, temperature)
    loss = Distillation(task, teacher, weight, temperature).loss(student, batch)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in student.parameters())


@pytest.mark.parametrize("head", TASKS)
def test_a_teacher_has_nothing_to_say_to_itself(checkpoints, head):
    teacher, _ = models(checkpoints["bert"], head)
    batch, student = texts(teacher), copy.deepcopy(teacher)
    loss = Distillation(TASKS[head], teacher, 1.0, 2.0, hidden_weight=3.0).loss(student, batch)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    loss.backward()
    assert max(p.grad.abs().max() for p in student.parameters() if p.grad is not None) < 1e-5


@pytest.mark.parametrize("head", TASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_of_real_tokens_are_compared_layer_by_layer(checkpoints, family, head):
    teacher, student = models(checkpoints[family], head)
    batch, task = texts(teacher), TASKS[head]
    layers = []
    with torch.no_grad():
        for i in range(3):
            text = {name: value[i : i + 1, : LENGTHS[i]] for name, value in model_inputs(batch).items()}
            layers.append([model(**text, output_hidden_states=True).hidden_states[1:] for model in (teacher, student)])
    errors = []
    for layer in range(len(layers[0][0])):
        expected, given = (torch.cat([text[which][layer][0] for text in layers]) for which in (0, 1))
        errors.append(float((given - expected).square().sum() / expected.square().sum()))
    assert len(errors) == teacher.config.num_hidden_layers
    plain = task.loss(student, batch).item()
    expected = plain + 0.7 * sum(errors) / len(errors)
    distilled = Distillation(task, teacher, weight=0, temperature=1, hidden_weight=0.7)
    loss = distilled.loss(student, batch)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    loss.backward()
    padded = [None if p.grad is None else p.grad.clone() for p in student.parameters()]
    if family == "flaubert":
        return
    student.zero_grad()
    for model in (teacher, student):
        run_unpadded(model)
    loss = distilled.loss(student, texts(teacher, token_rows=True))
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    loss.backward()
    for parameter, other in zip(student.parameters(), padded, strict=True):
        if other is not None:
            torch.testing.assert_close(parameter.grad, other, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("unpadded", [False, True])
def test_the_teacher_gets_no_gradient(checkpoints, unpadded):
    teacher, student = models(checkpoints["bert"])
    for model in (teacher, student) if unpadded else ():
        run_unpadded(model)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    Distillation(TASKS["classification"], teacher, 0.5, 2.0, hidden_weight=1.0).loss(student, texts(teacher)).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in student.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not teacher.training


def test_each_model_runs_once_a_batch(checkpoints):
    teacher, student = models(checkpoints["bert"])
    calls = []
    for name, model in (("teacher", teacher), ("student", student)):
        model.register_forward_hook(lambda *_, name=name: calls.append(name))
    Distillation(TASKS["classification"], teacher, 0.5, 2.0, hidden_weight=1.0).loss(student, texts(teacher))
    assert sorted(calls) == ["student", "teacher"]


def test_divergence_is_that_of_torch():
    generator = torch.Generator().manual_seed(0)
    p, q = (F.log_softmax(torch.randn(5, 4, generator=generator).double(), dim=-1) for _ in range(2))
    expected = F.kl_div(q, p, reduction="batchmean", log_target=True)
    assert float(divergence(p, q, 1.0)) == pytest.approx(float(expected), rel=1e-12)
    assert float(divergence(p, p, 3.0)) == 0
    assert 0 < float(divergence(p, q, 10.0)) < float(expected)
