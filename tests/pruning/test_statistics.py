"""Statistics of units are those of every text alone, without padding, however the texts are batched."""

import pytest
import torch
import torch.nn.functional as F

from bertdyn.data.batching import model_inputs
from bertdyn.models.unpadded import can_run_unpadded, run_unpadded
from bertdyn.pruning.shape import projection, shape_of
from bertdyn.pruning.statistics import gate_gradients, input_moments
from bertdyn.tasks.classification import Classification
from bertdyn.tasks.question_answering import QuestionAnswering
from tests.families import FAMILIES, tolerance_of
from tests.pruning.models import batch, load

TASKS = {"classification": Classification(), "question-answering": QuestionAnswering({}, {})}


def labelled(model, lengths=(9, 4, 7), seed=0):
    """A batch with what both tasks need."""
    generator = torch.Generator().manual_seed(seed + 100)
    found, lengths = batch(model, lengths, seed), torch.tensor(lengths)
    starts = torch.tensor([int(torch.randint(2, int(n) - 1, (), generator=generator)) for n in lengths])
    return found | {
        "labels": torch.randint(model.config.num_labels, (len(lengths),), generator=generator),
        "start_positions": starts,
        "end_positions": torch.minimum(starts + 1, lengths - 2),
        "context_start": torch.full_like(lengths, 2),
        "context_end": lengths - 1,
        "index": torch.arange(len(lengths)),
    }


def alone(whole):
    """Each text of a batch as a batch of its own, without padding."""
    for i, length in enumerate(whole["attention_mask"].sum(dim=1)):
        yield {name: v[i : i + 1, :length] if v.dim() == 2 else v[i : i + 1] for name, v in whole.items()}


def rebatched(model, whole, more_padding=5):
    """The same texts in another order and other batches, padded further."""
    found = []
    for rows in ([2], [1, 0]):
        part = {name: value[rows] for name, value in whole.items()}
        part["input_ids"] = F.pad(part["input_ids"], (0, more_padding), value=model.config.pad_token_id or 0)
        part["attention_mask"] = F.pad(part["attention_mask"], (0, more_padding))
        found.append(part)
    return found


def calls(model, text, forward):
    """What enters the output projections when `forward` runs: site → a tensor [1, seq, width] a call."""
    seen = {}

    def keep(site):
        def hook(module, args):
            if args[0].requires_grad:
                args[0].retain_grad()
            seen.setdefault(site, []).append(args[0])

        return hook

    handles = [projection(model, s).register_forward_pre_hook(keep(s)) for s in shape_of(model).sites]
    result = forward(text)
    for handle in handles:
        handle.remove()
    return seen, result


def naive_rows(model, whole, head):
    found = {}
    with torch.no_grad():
        for text in alone(whole):
            seen, _ = calls(model, text, lambda text: model(**model_inputs(text)))
            for site, inputs in seen.items():
                rows = [x[0] for x in inputs]
                if head == "classification" and site.layer == len(shape_of(model).heads):
                    rows[-1] = rows[-1][:1]  # nothing else of the last layer is read
                found.setdefault(site, []).extend(rows)
    return {site: torch.cat(rows) for site, rows in found.items()}


@pytest.mark.parametrize("head", TASKS)
@pytest.mark.parametrize(
    ("family", "way"),
    [(f, way) for f in FAMILIES for way in ("padded", "unpadded") if (f, way) != ("flaubert", "unpadded")],
)
def test_moments_are_those_of_real_tokens(checkpoints, family, head, way):
    model = load(checkpoints[family], head)
    whole = labelled(model)
    tolerance = tolerance_of(family, 1e-10)
    expected = naive_rows(model, whole, head)
    if way == "unpadded":
        assert can_run_unpadded(model)
        run_unpadded(model)
    model.train()  # there is dropout; nothing may be dropped
    for batches in ([whole], rebatched(model, whole)):
        found = input_moments(model, batches, covariance=True)
        variances = input_moments(model, batches)
        assert set(found) == set(expected) == set(shape_of(model).sites)
        for site, rows in expected.items():
            assert found[site].num_rows == len(rows)
            torch.testing.assert_close(found[site].mean, rows.mean(dim=0), atol=tolerance, rtol=0)
            torch.testing.assert_close(found[site].covariance, rows.T.cov(correction=0), atol=tolerance, rtol=0)
            torch.testing.assert_close(variances[site].variance, rows.var(dim=0, correction=0), atol=tolerance, rtol=0)


def naive_gradients(model, whole, log_probability, centres=None):
    """For each text: site → ∂ `log_probability` / ∂ gate, the sum over tokens of (output - centre) · its gradient."""
    shape, found = shape_of(model), []
    for text in alone(whole):
        seen, value = calls(model, text, lambda text: log_probability(model, text))
        value.backward()
        one = {}
        for site, inputs in seen.items():
            centre = 0 if centres is None else centres[site]
            by_input = sum(((x - centre) * x.grad).sum(dim=(0, 1)) for x in inputs)
            one[site] = by_input.detach().unflatten(0, (shape.units(site), -1)).sum(dim=1)
        found.append(one)
    return found


def loss_of(head):
    def loss(model, text):
        out = model(**model_inputs(text))
        if head == "classification":
            return F.cross_entropy(out.logits.float(), text["labels"])
        low, high = int(text["context_start"]), int(text["context_end"])
        total = 0
        for logits, target in (
            (out.start_logits, text["start_positions"]),
            (out.end_logits, text["end_positions"]),
        ):
            among = torch.cat([logits[:, :1], logits[:, low:high]], dim=1).float()
            total = total + F.cross_entropy(among, target - low + 1) / 2
        return total

    return loss


def assert_near(found, expected):
    """As near as float32 losses allow."""
    for site, values in expected.items():
        torch.testing.assert_close(found[site], values.double(), rtol=1e-4, atol=1e-5 * float(values.abs().max()))


@pytest.mark.parametrize("centred", [False, True], ids=["about zero", "about the mean"])
@pytest.mark.parametrize("head", TASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_every_text_alone(checkpoints, family, head, centred):
    model = load(checkpoints[family], head, **({"num_labels": 3} if head == "classification" else {}))
    whole, task = labelled(model), TASKS[head]
    centres = {site: of.mean for site, of in input_moments(model, [whole]).items()} if centred else None
    expected = naive_gradients(model, whole, loss_of(head), centres)
    model.train()
    for batches in ([whole], rebatched(model, whole)):
        found = gate_gradients(model, batches, task, centres=centres)
        assert found.num_texts == 3
        assert_near(found.absolute, {s: sum(text[s].abs() for text in expected) for s in expected[0]})
    if head == "classification":
        model.eval()
        fisher = dict.fromkeys(expected[0], 0.0)
        with torch.no_grad():
            weights = [F.softmax(model(**model_inputs(text)).logits.float(), dim=-1)[0] for text in alone(whole)]
        for label in range(3):
            gradients = naive_gradients(
                model,
                whole,
                lambda m, t, c=label: F.log_softmax(m(**model_inputs(t)).logits.float(), -1)[0, c],
                centres,
            )
            for weight, text in zip(weights, gradients, strict=True):
                fisher = {site: total + weight[label] * text[site].square() for site, total in fisher.items()}
        assert_near(found.fisher, fisher)


def hooks_of(model):
    """How many there are. transformers installs its own, which stay, when hidden states are first asked for."""
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


def many(whole, times):
    """The first text of a batch as so many texts."""
    repeated = {name: value[:1].expand(times, *value.shape[1:]) for name, value in whole.items()}
    return repeated | {"index": torch.arange(times)}


@pytest.mark.parametrize("case", ["six classes", "questions"])
def test_drawn_labels_depend_on_the_text_alone(checkpoints, case):
    """Neither padding, nor the batch that a text is in, nor its place there."""
    if case == "questions":
        model, task = load(checkpoints["bert"], "question-answering"), TASKS["question-answering"]
    else:
        model, task = load(checkpoints["bert"], num_labels=6), Classification()
    whole = labelled(model)
    expected = gate_gradients(model, [whole], task).fisher
    padded = {**whole}
    for name in ("input_ids", "attention_mask"):
        padded[name] = F.pad(whole[name], (0, 4), value=0)
    order = torch.tensor([2, 0, 1])
    shuffled = {name: value[order] for name, value in whole.items()}
    split = [{name: value[i : i + 1] for name, value in shuffled.items()} for i in range(3)]
    for batches in ([padded], [shuffled], split):
        found = gate_gradients(model, batches, task).fisher
        for site, values in expected.items():
            torch.testing.assert_close(found[site], values, rtol=1e-3, atol=1e-5 * float(values.max()))


def test_drawn_labels_estimate_the_sum_over_many_classes(checkpoints):
    model = load(checkpoints["bert"], num_labels=6)
    whole = labelled(model, (8,))
    with torch.no_grad():
        weights = F.softmax(model(**model_inputs(whole)).logits.float(), dim=-1)[0]
    exact = dict.fromkeys(shape_of(model).sites, 0.0)
    for label, weight in enumerate(weights):
        [text] = naive_gradients(
            model, whole, lambda m, t, c=label: F.log_softmax(m(**model_inputs(t)).logits, -1)[0, c]
        )
        exact = {site: total + weight * text[site].square() for site, total in exact.items()}
    found = gate_gradients(model, [many(whole, 2000)], Classification())
    for site, values in exact.items():
        torch.testing.assert_close(
            found.fisher[site] / 2000, values.double(), rtol=0.15, atol=0.02 * float(values.max())
        )
    once, again, other = (gate_gradients(model, [whole], Classification(), seed=seed) for seed in (1, 1, 5))
    site = shape_of(model).sites[0]
    assert torch.equal(once.fisher[site], again.fisher[site])
    assert not torch.equal(once.fisher[site], other.fisher[site])


def test_start_and_end_of_an_answer_are_drawn_independently(checkpoints):
    """So that the information is the sum of both."""
    model, task = load(checkpoints["bert"], "question-answering"), TASKS["question-answering"]
    whole = labelled(model, (8,))
    exact = dict.fromkeys(shape_of(model).sites, 0.0)
    for which in range(2):
        options = task.log_probabilities(model, whole)[which][0].exp()
        for position in options.nonzero()[:, 0].tolist():
            [text] = naive_gradients(
                model, whole, lambda m, t, w=which, p=position: task.log_probabilities(m, t)[w][0, p]
            )
            weight = options[position].detach()
            exact = {site: total + weight * text[site].square() for site, total in exact.items()}
    found = gate_gradients(model, [many(whole, 2000)], task)
    for site, values in exact.items():
        torch.testing.assert_close(
            found.fisher[site] / 2000, values.double(), rtol=0.15, atol=0.02 * float(values.max())
        )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("look", [input_moments, lambda m, b: gate_gradients(m, b, Classification())])
def test_the_model_is_left_as_it_was_even_after_an_exception(checkpoints, look, training):
    model = load(checkpoints["bert"]).train(training)
    model.requires_grad_(True)
    model(**model_inputs(labelled(model)), output_hidden_states=True)
    before, hooks = {name: value.clone() for name, value in model.state_dict().items()}, hooks_of(model)

    def breaking():
        yield labelled(model)
        raise OSError("no more texts")

    look(model, [labelled(model)])
    with pytest.raises(OSError, match="no more texts"):
        look(model, breaking())
    assert all(module.training == training for module in model.modules())
    assert hooks_of(model) == hooks
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
