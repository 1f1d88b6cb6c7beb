import json

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bertdyn.errors import InputError
from bertdyn.training.checkpoints import (
    MANIFEST,
    TRAINING_STATE,
    Checkpoints,
    load_progress,
    load_training_state,
)
from bertdyn.training.config import TrainingConfig
from bertdyn.training.loop import Progress
from bertdyn.training.optimization import make_optimizer, make_scheduler


def _setup(folder, checkpoint, config=None, **options):
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint)
    optimizer = make_optimizer(model, config or TrainingConfig())
    scheduler = make_scheduler(optimizer, config or TrainingConfig(), 20)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    saver = Checkpoints(folder, model, tokenizer, optimizer, scheduler, metric="eval/accuracy", **options)
    return model, optimizer, scheduler, saver


def _step(model, optimizer, scheduler):
    torch.manual_seed(len(optimizer.state))
    inputs = {"input_ids": torch.randint(5, 90, (2, 6)), "attention_mask": torch.ones(2, 6)}
    model(**inputs, labels=torch.tensor([0, 1])).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    scheduler.step()


@pytest.mark.parametrize("config", [TrainingConfig(), TrainingConfig(optimizer="sgd")])
def test_next_step_after_reload_is_the_same_bit_for_bit(checkpoints, tmp_path, config):
    model, optimizer, scheduler, saver = _setup(tmp_path, checkpoints["bert"], config)
    for parameter in model.bert.embeddings.parameters():
        parameter.requires_grad_(False)  # parameters that have no optimiser state yet
    model.eval()
    for _ in range(3):
        _step(model, optimizer, scheduler)
    progress = Progress(epoch=1, step=3, history=[{"eval/accuracy": 0.5}, {"eval/accuracy": 0.75}])
    saver.on_epoch_end(progress)

    again, optimizer2, scheduler2, _ = _setup(tmp_path, tmp_path / "checkpoints/epoch_001", config)
    load_training_state(tmp_path / TRAINING_STATE, again, optimizer2, scheduler2)
    assert load_progress(tmp_path / TRAINING_STATE) == progress
    again.eval()
    for both in ((model, optimizer, scheduler), (again, optimizer2, scheduler2)):
        for parameter in both[0].parameters():
            parameter.requires_grad_(True)
        torch.manual_seed(5)
        inputs = {"input_ids": torch.randint(5, 90, (2, 6)), "attention_mask": torch.ones(2, 6)}
        both[0](**inputs, labels=torch.tensor([0, 1])).loss.backward()
        both[1].step()
        both[2].step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert scheduler.get_last_lr() == scheduler2.get_last_lr()


def test_manifest_names_the_states_and_old_epochs_go(checkpoints, tmp_path):
    saved: list[str] = []
    _, _, _, saver = _setup(tmp_path, checkpoints["bert"], keep=1, saved=saved.append)
    progress = Progress()
    for epoch, accuracy in enumerate([0.5, 0.8, 0.7, 0.8, 0.6]):
        progress.epoch = epoch
        progress.history.append({"eval/accuracy": accuracy})
        saver.on_epoch_end(progress)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    assert manifest["states"] == {"pretrained": "epoch_000", "best": "epoch_001", "last": "epoch_004"}
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir() if path.is_dir())
    assert kept == ["epoch_000", "epoch_001", "epoch_004"]
    assert saved[-3:] == ["checkpoints/epoch_004", MANIFEST, TRAINING_STATE]  # the state that names it comes last


def test_log_spaced_steps(checkpoints, tmp_path):
    _, _, _, saver = _setup(tmp_path, checkpoints["bert"], log_spaced=True)
    for step in (0, 1, 1, 2, 3, 4, 5):  # with accumulation, a step can be seen twice
        saver.on_step_end(Progress(epoch=1, step=step), {}, torch.tensor(0.0))
    steps = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert steps == ["step_000001", "step_000002", "step_000004"]


def test_state_of_another_model_is_refused(checkpoints, tmp_path):
    _, _, _, saver = _setup(tmp_path, checkpoints["bert"])
    model, optimizer, scheduler, _ = _setup(tmp_path, checkpoints["distilbert"])
    other, optimizer2, scheduler2, saver = _setup(tmp_path, checkpoints["bert"])
    _step(other, optimizer2, scheduler2)
    saver.on_epoch_end(Progress(epoch=0, history=[{}]))
    with pytest.raises(InputError, match="state of another model"):
        load_training_state(tmp_path / TRAINING_STATE, model, optimizer, scheduler)
