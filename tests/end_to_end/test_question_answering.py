"""Fine-tuning on SQuAD 2.0 by the command, with one process and with two."""

import json
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from bertdyn.data.batching import make_batches
from bertdyn.data.config import DataConfig
from bertdyn.data.loading import load_data
from bertdyn.data.windows import make_windows
from bertdyn.models.loading import local_name
from bertdyn.tasks.question_answering import QuestionAnswering
from tests.end_to_end.conftest import TINY, artifacts, make_workplace
from tests.end_to_end.test_fine_tune import _torchrun
from tests.squad_files import write_squad

OPTIONS = (*TINY[:4], "--dataset", "squad_v2", "--max_length", "64", "--doc_stride", "16", "--learning_rate", "1e-3",
           "--num_train_epochs", "2")  # fmt: skip


@pytest.fixture(scope="module")
def squad(tmp_path_factory):
    return write_squad(tmp_path_factory.mktemp("squad"))


@pytest.fixture(scope="module")
def finished(squad, tmp_path_factory):
    workplace = make_workplace(tmp_path_factory.mktemp("answering"))
    out = workplace.run(*OPTIONS, "--data_dir", str(squad), "--register_as", "reader@champion")
    [run] = workplace.runs()
    return workplace, run, out


def best_checkpoint(run) -> Path:
    manifest = json.loads((artifacts(run) / "checkpoints/manifest.json").read_text())
    return artifacts(run) / "checkpoints" / manifest["states"]["best"]


def said_again(run, squad) -> pd.DataFrame:
    """The best spans of validation and test by the kept best checkpoint, in this one process."""
    folder = best_checkpoint(run)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForQuestionAnswering.from_pretrained(folder)
    parts = load_data(DataConfig(dataset="squad_v2", data_dir=str(squad))).parts
    windows = {part: make_windows(parts[part], tokenizer, 64, 16) for part in ("validation", "test")}
    task, accelerator, tables = QuestionAnswering(parts, windows), Accelerator(cpu=True), []
    for part in windows:
        batches = accelerator.prepare(make_batches(windows[part], tokenizer, 5, shuffle=False))
        tables.append(task.predict(accelerator, model, batches, part).table.assign(part=part))
    return pd.concat(tables, ignore_index=True)


def compare(run, squad) -> None:
    """One prediction a question, in the order of the parts, and each the model's own."""
    predictions, again = pd.read_parquet(artifacts(run) / "predictions.parquet"), said_again(run, squad)
    assert predictions["example_id"].is_unique
    columns = ["part", "example_id", "char_start", "char_end", "span_score", "null_score", "score_difference"]
    pd.testing.assert_frame_equal(predictions[columns], again[columns], atol=1e-4)
    assert predictions["best_span"].tolist() == again["answer"].tolist()


def test_the_run_in_mlflow(finished):
    workplace, run, out = finished
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "squad_v2-minilm-scratch-s0"
    assert run.info.run_id in out
    params = run.data.params
    assert (params["dataset"], params["max_length"], params["doc_stride"]) == ("squad_v2", "64", "16")
    points = workplace.points(run.info.run_id)
    assert all(len(values) == 1 for values in points.values())
    assert {step for key, step in points if key == "eval/f1"} == {0, 1, 2}
    keys = {key for key, _ in points}
    final = {"best/epoch", "best/f1", "best/null_threshold", "test/baseline_always_null", "test/loss", "test/exact"}
    final |= {"test/f1", "test/f1_low", "test/f1_high", "test/has_ans_exact", "test/has_ans_f1", "test/no_ans_f1"}
    assert final <= keys
    assert {"eval/exact", "eval/has_ans_f1", "eval/no_ans_f1", "eval/null_threshold", "eval/loss"} <= keys
    assert not {key for key in keys if "accuracy" in key}
    assert len(run.data.metrics) <= 100
    assert sorted(i.dataset.name for i in run.inputs.dataset_inputs) == [
        f"squad_v2-{part}" for part in ("probe", "test", "train", "validation")
    ]


def test_its_note_and_artifacts(finished):
    _, run, _ = finished
    folder = artifacts(run)
    figures = {"training_curves", "dynamics_by_layer", "dynamics_by_component", "null_threshold", "features_pca"}
    drawn = list((folder / "figures").glob("*.png"))
    film = sorted((folder / "figures" / "features_pca_by_epoch").iterdir())
    assert {path.stem for path in drawn} == figures
    assert [path.name for path in film] == ["000.png", "001.png", "002.png"]
    assert all(path.stat().st_size > 5000 for path in [*drawn, *film])
    note = run.data.tags["mlflow.note.content"]
    assert note == (folder / "summary.md").read_text()
    metrics = run.data.metrics
    assert note.startswith("## Fine-tuning `minilm` (from scratch) on `squad_v2`, seed 0\n")
    [row] = [line for line in note.splitlines() if line.startswith("| fine-tuned, best epoch |")]
    cells = [cell.strip() for cell in row.strip("|").split("|")][1:]
    names = ("best/f1", "test/exact", "test/f1", "test/has_ans_exact", "test/has_ans_f1", "test/no_ans_f1")
    assert cells[:-1] == [f"{100 * metrics[name]:.2f}" for name in names]
    assert cells[-1] == f"{100 * metrics['test/f1_low']:.2f} – {100 * metrics['test/f1_high']:.2f}"
    assert f"≤ {metrics['best/null_threshold']:.3f}, the best threshold for F1 on validation" in note
    assert f"Best epoch by validation f1: **{int(metrics['best/epoch'])}** of 2." in note
    curve = pd.read_parquet(folder / "threshold_curve.parquet")
    assert set(curve["part"]) == {"validation", "test"}
    best = curve[curve["part"] == "validation"]["f1"].max()
    assert best == pytest.approx(metrics["best/f1"], abs=1e-6)
    labels = pd.read_parquet(folder / "predictions.parquet").query("part == 'test'")["label"]
    assert metrics["test/baseline_always_null"] == pytest.approx((labels == 0).mean())


def test_predictions_are_the_models_own(finished, squad):
    _, run, _ = finished
    compare(run, squad)


def test_the_registered_model_is_the_best_checkpoint(finished):
    """As Hugging Face files: transformers has no pipeline for this task any more."""
    workplace, run, _ = finished
    mlflow.set_tracking_uri(workplace.uri)
    folder = mlflow.artifacts.download_artifacts("models:/reader@champion", dst_path=str(workplace.folder / "model"))
    model, loading = AutoModelForQuestionAnswering.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"]
    best = load_file(best_checkpoint(run) / "model.safetensors")
    assert all(torch.equal(tensor, model.get_parameter(name)) for name, tensor in best.items())
    ids = AutoTokenizer.from_pretrained(folder)("Where ?", "in the golden castle")["input_ids"]
    assert ids == AutoTokenizer.from_pretrained(best_checkpoint(run))("Where ?", "in the golden castle")["input_ids"]


def test_what_cannot_be_resumed(finished):
    workplace, run, _ = finished
    other = ("--doc_stride", "8")
    out = workplace.run("--resume_run_id", run.info.run_id, *other, status=2)
    assert f"error: --doc_stride 8: run {run.info.run_id} was started with 16" in out
    assert workplace.client().get_run(run.info.run_id).info.status == "FINISHED"


def test_two_processes_give_one_prediction_a_question(squad, workplace):
    """Windows that do not fill two batches of seven: some are given out twice, and none is lost or counts double."""
    parts = load_data(DataConfig(dataset="squad_v2", data_dir=str(squad))).parts
    tokenizer = AutoTokenizer.from_pretrained(local_name("minilm"))
    assert all(len(make_windows(parts[part], tokenizer, 64, 16)) % 14 for part in ("validation", "test"))
    _torchrun(
        workplace, *OPTIONS[:-1], "1", "--data_dir", str(squad), "--unpadded", "true",
        "--per_device_train_batch_size", "8", "--per_device_eval_batch_size", "7",
    )  # fmt: skip
    [run] = workplace.runs()
    assert run.info.status == "FINISHED"
    assert all(len(values) == 1 for values in workplace.points(run.info.run_id).values())
    predictions = pd.read_parquet(artifacts(run) / "predictions.parquet")
    assert predictions["example_id"].tolist() == [*parts["validation"]["example_id"], *parts["test"]["example_id"]]
    compare(run, squad)
    features = pd.read_parquet(artifacts(run) / "features/examples.parquet")
    assert features["example_id"].tolist() == parts["probe"]["example_id"].tolist()
