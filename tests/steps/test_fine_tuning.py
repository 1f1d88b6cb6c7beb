"""The step as a function, without MLflow, for every family."""

import dataclasses
import json
import shutil

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bertdyn.features.store import FeatureStore
from bertdyn.steps.config import FineTuneConfig
from bertdyn.steps.fine_tuning import fine_tune
from bertdyn.tracking.tracker import Tracker
from bertdyn.training.checkpoints import TRAINING_STATE
from tests.families import FAMILIES, LAYERS

pytestmark = pytest.mark.slow

SMALL = {
    "max_train_samples": 48,
    "max_validation_samples": 20,
    "max_probe_samples": 12,
    "max_test_samples": 20,
    "per_device_train_batch_size": 16,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_and_is_kept(checkpoints, family, tmp_path, caplog):
    caplog.set_level("INFO", logger="bertdyn")
    config = FineTuneConfig(model_name_or_path=str(checkpoints[family]), num_train_epochs=2, **SMALL)
    result = fine_tune(config, Tracker(tmp_path))
    assert result.best_epoch in (1, 2)
    assert ("padding is computed: this flaubert cannot run without" in caplog.text) == (family == "flaubert")
    assert "fine-tuned, best epoch" in result.summary
    dynamics = pd.read_parquet(tmp_path / "dynamics.parquet")
    assert "other" not in set(dynamics["component"])
    trained = dynamics[(dynamics["epoch"] == 2) & dynamics["component"].isin(["query", "ffn_in", "word_embeddings"])]
    assert (trained["update_norm"] > 0).all()
    store = FeatureStore.open(tmp_path / "features")
    assert store.layers("first") == list(range(LAYERS + 1))
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {m["step"] for m in metrics if m["key"] == "eval/loss"} == {0, 1, 2}
    # the kept model says of the probe part what the stored predictions say
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "checkpoints/epoch_002").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "checkpoints/epoch_002")
    examples = store.examples()
    for i, text in enumerate(examples["text"]):
        inputs = {k: v for k, v in tokenizer(text, return_tensors="pt").items() if k in tokenizer.model_input_names}
        with torch.inference_mode():
            logits = model(**inputs).logits[0]
        torch.testing.assert_close(logits, torch.tensor(store.logits("epoch_002")[i]), atol=1e-5, rtol=0)


def test_pairs_of_texts(checkpoints, tmp_path):
    rows = [{"text": f"a film {i}", "other": f"a review {i}", "label": i % 2} for i in range(120)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    config = FineTuneConfig(
        model_name_or_path=str(checkpoints["bert"]), num_train_epochs=1, dataset=str(file), text_pair_column="other"
    )
    fine_tune(config, Tracker(tmp_path / "run"))
    examples = FeatureStore.open(tmp_path / "run/features").examples()
    assert examples["text_pair"].str.startswith("a review").all()


def test_bfloat16_keeps_float32_weights(checkpoints, tmp_path):
    config = FineTuneConfig(
        model_name_or_path=str(checkpoints["bert"]), num_train_epochs=1, mixed_precision="bf16", **SMALL
    )
    fine_tune(config, Tracker(tmp_path))
    weights = load_file(tmp_path / "checkpoints/epoch_001/model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert FeatureStore.open(tmp_path / "features").array("first", "epoch_001", 1).dtype == "float32"


def test_seeds_differ_and_repeat(checkpoints, tmp_path):
    def weights(seed: int, folder: str) -> bytes:
        config = FineTuneConfig(model_name_or_path=str(checkpoints["bert"]), num_train_epochs=1, seed=seed, **SMALL)
        fine_tune(config, Tracker(tmp_path / folder))
        return (tmp_path / folder / "checkpoints/epoch_001/model.safetensors").read_bytes()

    assert weights(0, "a") == weights(0, "b")
    assert weights(0, "a2") != weights(1, "c")


def test_what_is_watched_does_not_change_the_training(checkpoints, tmp_path):
    """Features, attention and log-spaced checkpoints on or off: the same weights, bit for bit."""

    def weights(folder: str, **options) -> bytes:
        config = FineTuneConfig(model_name_or_path=str(checkpoints["bert"]), num_train_epochs=2, **SMALL, **options)
        fine_tune(config, Tracker(tmp_path / folder))
        return (tmp_path / folder / "checkpoints/epoch_002/model.safetensors").read_bytes()

    assert weights("off", store_features=False) == weights("on", store_attention=True, log_spaced_checkpoints=True)


class _Interrupted(Exception):
    pass


class _Breaks(Tracker):
    """Fails at the n-th thing that is published, before or after it is delivered."""

    def __init__(self, folder, at):
        super().__init__(folder)
        self.left = at
        self.published: list[str] = []

    def publish(self, path):
        self.published.append(path)
        self.left -= 1
        if self.left == 0:
            raise _Interrupted(path)


def test_interrupted_between_any_two_writes_it_ends_the_same(checkpoints, tmp_path):
    """Cut off after each of the files of an epoch, and of the report, then resumed: nothing is lost or other."""
    config = FineTuneConfig(
        model_name_or_path=str(checkpoints["distilbert"]),
        num_train_epochs=2,
        gradient_accumulation_steps=2,
        lr_scheduler_type="cosine",
        **SMALL,
    )
    resumed = dataclasses.replace(config, resume_run_id="this one")
    whole = _Breaks(tmp_path / "whole", at=0)
    fine_tune(config, whole)
    expected = _content(tmp_path / "whole")
    # every write of the last epoch, and a few before and after it
    first = whole.published.index("features/epoch_002")
    last = len(whole.published) - whole.published[::-1].index(TRAINING_STATE)
    for at in [2, 6, *range(first, last + 2), len(whole.published)]:
        folder = tmp_path / f"cut-{at}"
        with pytest.raises(_Interrupted):
            fine_tune(config, _Breaks(folder, at))
        fine_tune(resumed, Tracker(folder))
        assert _content(folder) == expected, whole.published[at - 1]
        shutil.rmtree(folder)


def test_half_checkpoints_resume_exactly(checkpoints, tmp_path):
    """Rounded on disk, exact in the training state: a resumed training is the uninterrupted one."""
    config = FineTuneConfig(
        model_name_or_path=str(checkpoints["distilbert"]), num_train_epochs=2, checkpoint_dtype="bfloat16", **SMALL
    )
    whole = _Breaks(tmp_path / "whole", at=0)
    fine_tune(config, whole)
    at = whole.published.index(TRAINING_STATE, whole.published.index(TRAINING_STATE) + 1) + 2  # epoch 1 is complete
    with pytest.raises(_Interrupted):
        fine_tune(config, _Breaks(tmp_path / "cut", at))
    assert not (tmp_path / "cut/checkpoints/epoch_002").exists()
    fine_tune(dataclasses.replace(config, resume_run_id="this one"), Tracker(tmp_path / "cut"))
    assert _content(tmp_path / "cut") == _content(tmp_path / "whole")
    exact = load_file(tmp_path / "whole" / TRAINING_STATE)
    for epoch, dtype in ((0, torch.float32), (1, torch.bfloat16), (2, torch.bfloat16)):
        kept = load_file(tmp_path / f"whole/checkpoints/epoch_00{epoch}/model.safetensors")
        assert {tensor.dtype for tensor in kept.values()} == {dtype}
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / f"whole/checkpoints/epoch_00{epoch}")
        assert model.dtype == dtype
    assert all(torch.equal(kept[name], exact[f"{name}/weight"].bfloat16()) for name in kept)


def test_class_weights_reach_the_training(checkpoints, tmp_path):
    def head(folder: str, option: str | None) -> torch.Tensor:
        config = FineTuneConfig(
            model_name_or_path=str(checkpoints["bert"]), num_train_epochs=1, class_weights=option, **SMALL
        )
        fine_tune(config, Tracker(tmp_path / folder))
        return load_file(tmp_path / folder / "checkpoints/epoch_001/model.safetensors")["classifier.weight"]

    even = head("even", "1,1")
    torch.testing.assert_close(head("none", None), even)
    assert not torch.allclose(head("uneven", "1,20"), even)


def _content(folder):
    """Everything that must not depend on interruptions: weights, features, optimiser, metrics but for times."""
    files = sorted([*folder.glob("checkpoints/*/model.safetensors"), *folder.glob("features/*/*/*.npy")])
    content = {str(file.relative_to(folder)): file.read_bytes() for file in files}
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("train/examples", "train/tokens", "train/step_time", "train/epoch", "memory/")
    content["metrics"] = sorted((m["key"], m["step"], m["value"]) for m in metrics if not m["key"].startswith(timed))
    content["dynamics"] = pd.read_parquet(folder / "dynamics.parquet").to_csv()
    content["optimizer"] = load_file(folder / TRAINING_STATE)["distilbert.transformer.layer.1.ffn.lin1.weight/exp_avg"]
    content["optimizer"] = content["optimizer"].numpy().tobytes()
    return content


def test_checkpoints_with_old_parameter_names_resume(checkpoints, tmp_path):
    """The first BERT checkpoints call LayerNorm's weight gamma; the ones that we write use the model's own names."""
    old = tmp_path / "old"
    shutil.copytree(checkpoints["bert"], old)
    weights = load_file(old / "model.safetensors")
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in weights.items()
    }
    save_file(renamed, old / "model.safetensors", metadata={"format": "pt"})
    config = FineTuneConfig(model_name_or_path=str(old), num_train_epochs=1, **SMALL)
    with pytest.raises(_Interrupted):
        fine_tune(config, _Breaks(tmp_path / "run", at=8))
    result = fine_tune(dataclasses.replace(config, resume_run_id="this one"), Tracker(tmp_path / "run"))
    assert result.best_epoch == 1
    assert not [name for name in load_file(tmp_path / "run/checkpoints/epoch_001/model.safetensors") if "gamma" in name]


def test_the_report_is_about_the_best_epoch_not_the_last(checkpoints, tmp_path):
    """A learning rate so high that later epochs are worse than the first."""
    config = FineTuneConfig(
        model_name_or_path="minilm",
        from_scratch=True,
        config_overrides="num_hidden_layers=1,hidden_size=32,num_attention_heads=2,intermediate_size=32",
        num_train_epochs=4,
        learning_rate=0.05,
        **(SMALL | {"max_test_samples": 200, "max_validation_samples": 100}),
    )
    result = fine_tune(config, Tracker(tmp_path))
    history = json.loads((tmp_path / "checkpoints/manifest.json").read_text())["history"]
    accuracy = [epoch["eval/accuracy"] for epoch in history]
    assert result.best_epoch == 1 + accuracy[1:].index(max(accuracy[1:]))
    scores = result.scores.set_index(["part", "state", "baseline"])
    assert scores.at[("validation", "best", "none"), "accuracy"] == pytest.approx(max(accuracy[1:]))
    assert scores.at[("validation", "best", "none"), "loss"] == pytest.approx(
        history[result.best_epoch]["eval/loss"], rel=1e-5
    )


def test_labels_that_look_like_formulas(checkpoints, tmp_path):
    file = tmp_path / "odd.csv"
    file.write_text("text,label\n" + "".join(f"!? {i},{'$a_$' if i % 2 else 'x^'}\n" for i in range(120)))
    config = FineTuneConfig(model_name_or_path=str(checkpoints["bert"]), num_train_epochs=1, dataset=str(file))
    fine_tune(config, Tracker(tmp_path / "run"))
    assert (tmp_path / "run/figures/confusion_matrix.png").stat().st_size > 5000


def test_early_stopping_keeps_the_best(checkpoints, tmp_path):
    config = FineTuneConfig(
        model_name_or_path=str(checkpoints["bert"]),
        num_train_epochs=6,
        early_stopping_patience=1,
        learning_rate=1e-9,
        **SMALL,
    )
    result = fine_tune(config, Tracker(tmp_path))
    assert result.best_epoch == 1  # nothing moves, ties go to the earliest
    manifest = json.loads((tmp_path / "checkpoints/manifest.json").read_text())
    assert manifest["states"] == {"pretrained": "epoch_000", "best": "epoch_001", "last": "epoch_002"}


def test_frozen_parts_do_not_move(checkpoints, tmp_path):
    config = FineTuneConfig(
        model_name_or_path=str(checkpoints["bert"]),
        num_train_epochs=3,
        freeze_layers=2,
        freeze_embeddings=True,
        freeze_epochs=1,
        gradual_unfreezing=True,
        **SMALL,
    )
    fine_tune(config, Tracker(tmp_path))
    dynamics = pd.read_parquet(tmp_path / "dynamics.parquet")
    moved = dynamics[dynamics["update_norm"] > 0].groupby("epoch")["layer"].unique()
    assert set(moved[1].dropna()) == {3}
    assert set(moved[2].dropna()) == {2, 3}
    assert set(moved[3].dropna()) == {1, 2, 3}
    embeddings = dynamics[dynamics["component"] == "word_embeddings"].set_index("epoch")["update_norm"]
    assert embeddings[3] == 0
    lr = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rates = [m["value"] for m in lr if m["key"] == "train/learning_rate"]
    assert rates == sorted(rates, reverse=True)  # no restart of the schedule at an unfreezing
