"""The loop on a small linear model, where everything can be computed by hand."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

from bertdyn.data.batching import EpochShuffle
from bertdyn.training.gradients import clip_gradients, tensor_norms
from bertdyn.training.loop import AtEpochEnd, Listener, Progress, epoch_seed, train

ROWS = 10


class _Table(torch.utils.data.Dataset):
    def __init__(self):
        generator = torch.Generator().manual_seed(3)
        self.x = torch.randn(ROWS, 4, generator=generator)
        self.y = torch.randn(ROWS, generator=generator)

    def __len__(self):
        return ROWS

    def __getitem__(self, i):
        return {"x": self.x[i], "y": self.y[i]}


def _loss(model, batch):
    return ((model(batch["x"])[:, 0] - batch["y"]) ** 2).mean()


def _sampler(epoch):
    sampler = EpochShuffle(ROWS, 7)
    sampler.set_epoch(epoch)
    return sampler


def _train(
    num_epochs,
    model=None,
    progress=None,
    accumulation=1,
    batch_size=4,
    listeners=(),
    optimizer=None,
    max_grad_norm=0.0,
):
    if model is None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(_Table(), batch_size=batch_size, sampler=EpochShuffle(ROWS, 7), generator=torch.Generator())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    progress = train(
        accelerator,
        model,
        loader,
        _loss,
        optimizer,
        scheduler,
        num_epochs=num_epochs,
        seed=7,
        max_grad_norm=max_grad_norm,
        listeners=listeners,
        progress=progress,
    )
    return model, progress


def test_going_on_from_an_epoch_is_the_uninterrupted_training():
    """Dropout and order are functions of (seed, epoch): nothing drawn in between changes them."""
    whole, _ = _train(3)
    half, progress = _train(1, listeners=[AtEpochEnd(lambda progress: torch.rand(5))])
    torch.rand(17)
    resumed, _ = _train(3, model=half, progress=progress)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_accumulated_batches_are_one_large_batch():
    """Equal batch sizes and no dropout: two batches of 5 accumulated are one batch of 10."""
    results = []
    for accumulation, batch_size in ((1, 10), (2, 5)):
        torch.manual_seed(0)
        model, progress = _train(3, nn.Linear(4, 1).double().float(), None, accumulation, batch_size)
        assert progress.step == 3
        results.append(torch.cat([p.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-7)


def test_an_incomplete_last_group_counts_in_full():
    """Batches of 4, 4 and 2 in groups of two: the last group is one batch, and its gradient is not halved."""
    seen = []

    class Norms(Listener):
        def on_gradients(self, progress, norms):
            seen.append(norms.clone())

    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    _train(1, model, None, 2, 4, [Norms()], optimizer)
    table = _Table()
    order = list(_sampler(epoch=1))
    for group, rows in zip(seen, ([order[:4], order[4:8]], [order[8:]]), strict=True):
        model.zero_grad()
        for some in rows:
            (_loss(model, {"x": table.x[some], "y": table.y[some]}) / len(rows)).backward()
        torch.testing.assert_close(group, tensor_norms(list(model.parameters())))


def test_gradients_are_clipped_before_the_update():
    """SGD with rate 1: the step is the clipped gradient, while listeners see the norms before clipping."""
    steps, norms = [], []

    class Watch(Listener):
        def on_gradients(self, progress, found):
            norms.append(torch.linalg.vector_norm(found).item())

        def on_step_end(self, progress, batch, loss):
            steps.append(torch.cat([p.detach().flatten().clone() for p in model.parameters()]))

    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    _train(1, model, None, 1, 10, [Watch()], torch.optim.SGD(model.parameters(), lr=1.0), max_grad_norm=0.1)
    assert norms[0] > 0.1
    assert (steps[0] - before).norm().item() == pytest.approx(0.1, rel=1e-4)


def test_a_diverged_training_says_what_to_do():
    model = nn.Linear(4, 1)
    with torch.no_grad():
        model.weight.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match=r"diverged in epoch 1 .*lower --learning_rate"):
        _train(1, model)


def test_events_come_in_order_and_epoch_0_is_seen():
    seen = []

    class Ear(Listener):
        def on_epoch_start(self, progress):
            seen.append(("start", progress.epoch))

        def on_gradients(self, progress, norms):
            seen.append(("gradients", progress.step))

        def on_step_end(self, progress, batch, loss):
            seen.append(("step", progress.step))

        def on_epoch_end(self, progress):
            seen.append(("end", progress.epoch))

        def on_train_end(self, progress):
            seen.append(("over", progress.epoch))

    _, progress = _train(1, listeners=[Ear()])
    assert seen == [
        ("end", 0),
        ("start", 1),
        *[event for step in range(3) for event in (("gradients", step), ("step", step + 1))],
        ("end", 1),
        ("over", 1),
    ]
    assert progress.history[0] == {}


def test_train_loss_weighs_examples_not_batches():
    """Batches of 4, 4 and 2: with a learning rate of 0 the mean is that over the ten rows."""
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    _, progress = _train(1, model, optimizer=optimizer)
    table = _Table()
    with torch.no_grad():
        expected = _loss(model, {"x": table.x, "y": table.y}).item()
    assert progress.history[1]["train/loss"] == pytest.approx(expected, rel=1e-5)


def test_clipping_is_torchs_own():
    parameters = [nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(2))]
    for p in parameters[:2]:
        p.grad = torch.randn_like(p) * 3
    before = [p.grad.clone() for p in parameters[:2]]
    norms = tensor_norms(parameters)
    assert norms[2] == 0
    assert tensor_norms(parameters[2:]).tolist() == [0]
    torch.testing.assert_close(norms[:2], torch.stack([g.norm() for g in before]))
    clip_gradients(parameters, norms, 1.0)
    ours = [p.grad for p in parameters[:2]]
    for p, g in zip(parameters, before, strict=False):
        p.grad = g
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    for mine, p in zip(ours, parameters, strict=False):
        torch.testing.assert_close(mine, p.grad)


def test_epoch_seeds_do_not_repeat():
    seeds = {epoch_seed(seed, epoch) for seed in range(50) for epoch in range(50)}
    assert len(seeds) == 2500


def test_a_stopped_training_stays_stopped():
    def stop(progress: Progress) -> None:
        progress.stop = progress.epoch == 2

    _, progress = _train(5, listeners=[AtEpochEnd(stop)])
    assert progress.epoch == 2
    _, again = _train(5, progress=progress)
    assert again.epoch == 2
