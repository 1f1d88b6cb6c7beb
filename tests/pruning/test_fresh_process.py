"""A saved model in a process that knows nothing of this package."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from bertdyn.pruning.fresh_process import in_fresh_process
from bertdyn.pruning.latency import random_batches

pytestmark = pytest.mark.usefixtures("one_thread")
CLASSIFICATION = "AutoModelForSequenceClassification"
OUTPUTS = {
    CLASSIFICATION: ["logits"],
    "AutoModelForQuestionAnswering": ["start_logits", "end_logits"],
    "AutoModel": ["last_hidden_state"],
}


def _saved(checkpoint, folder, auto_class=CLASSIFICATION):
    """A model with a head of its own in `folder`, and a padded batch for it."""
    torch.manual_seed(0)
    model = getattr(transformers, auto_class).from_pretrained(checkpoint).eval()
    model.save_pretrained(folder)
    return model, random_batches(model.config, [(3, 19)], seed=0)[0]


@pytest.mark.parametrize(
    ("family", "auto_class"),
    [
        ("bert", CLASSIFICATION),
        ("fft_bert", CLASSIFICATION),
        ("conv2d_bert", "AutoModelForQuestionAnswering"),
        ("distilbert", "AutoModel"),
    ],
)
def test_outputs_are_those_of_this_process(checkpoints, tmp_path, monkeypatch, family, auto_class):
    model, batch = _saved(checkpoints[family], tmp_path / "model", auto_class)
    files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "user"))
    monkeypatch.chdir(Path(__file__).parents[2])  # bertdyn lies here: it must not be found

    found = in_fresh_process(tmp_path / "model", batch, auto_class)

    with torch.inference_mode():
        outputs = model(**batch)
    names = OUTPUTS[auto_class]
    assert len(found.outputs) == len(names)
    assert all(torch.equal(output, outputs[name]) for output, name in zip(found.outputs, names, strict=True))
    assert found.weight_bytes == len(files["model.safetensors"])
    assert 0 < found.load_seconds < 60
    # Nothing is left, beside the model, in the temporary folder, or in the user's cache.
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == files
    assert list(scratch.iterdir()) == []
    assert not (tmp_path / "user").exists()


def test_bertdyn_cannot_be_imported_but_on_request(checkpoints, tmp_path):
    _, batch = _saved(checkpoints["fft_bert"], tmp_path / "model")
    code = tmp_path / "model/embedding_variants.py"
    code.write_text(code.read_text() + "\nimport bertdyn\n")
    with pytest.raises(RuntimeError, match="import of bertdyn halted"):
        in_fresh_process(tmp_path / "model", batch, CLASSIFICATION)
    code.unlink()
    assert in_fresh_process(tmp_path / "model", batch, CLASSIFICATION, with_bertdyn=True).outputs[0].shape == (3, 2)


def test_memory_is_of_the_process_alone(checkpoints, tmp_path):
    """Neither of its parent, whose size Linux would count into ru_maxrss, nor blind to the model's."""
    _, batch = _saved(checkpoints["bert"], tmp_path / "small")
    config = transformers.AutoConfig.from_pretrained(checkpoints["bert"], hidden_size=512, intermediate_size=8192)
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "large")
    ballast = np.ones(2**27)  # 1 GiB
    small, large = (in_fresh_process(tmp_path / size, batch, CLASSIFICATION) for size in ("small", "large"))
    assert small.idle_memory_mb < small.peak_memory_mb < ballast.nbytes / 2**20
    layers_mb = 4 * config.num_hidden_layers * 2 * 512 * 8192 / 2**20  # of the feed-forward parts, read by every batch
    assert 0.95 < (large.peak_memory_mb - large.idle_memory_mb) / layers_mb < 2


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "embedding_variants.py").unlink(), "embedding_variants"),
        (lambda folder: os.truncate(folder / "model.safetensors", 1000), "header"),
        (lambda folder: shutil.copy(os.devnull, folder / "config.json"), "config.json"),
        (lambda folder: _narrower(folder / "config.json"), "Error"),
    ],
)
def test_a_broken_folder_is_told_in_one_line(checkpoints, tmp_path, damage, said):
    _, batch = _saved(checkpoints["fft_bert"], tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(RuntimeError, match=f"model does not load in a process of its own: .*{said}") as failure:
        in_fresh_process(tmp_path / "model", batch, CLASSIFICATION)
    assert "\n" not in str(failure.value)


def _narrower(path):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"intermediate_size": 60}))
