"""Wrong input: one clear line, status 2, no traceback, no run left RUNNING."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from transformers import AutoModelForQuestionAnswering

from entrypoints import fine_tune
from entrypoints.command import run as run_command
from tests.end_to_end.conftest import ROOT, TINY, artifacts


@pytest.fixture
def command(workplace, monkeypatch, capsys):
    """Run the command in this process; return (exit status, what stood on the error stream)."""

    def run(*argv: str) -> tuple[int, str]:
        for name, value in workplace.environment.items():
            if name.startswith(("MLFLOW_", "BERTDYN_CACHE")):
                monkeypatch.setenv(name, value)
        import mlflow

        mlflow.set_tracking_uri(workplace.uri)
        monkeypatch.setattr(sys, "argv", ["fine_tune", *argv])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run_command(fine_tune.main)
        return ended.value.code, capsys.readouterr().err

    return run


def _csv(tmp_path, text: str, name="data.csv", encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    return str(path)


def _squad(folder, **first_question):
    """A SQuAD 2.0 file of four articles; the fields of its first question as given, None for a field left out."""
    articles = []
    for article in range(4):
        paragraphs = []
        for number in range(2):
            answers = [{"text": "red house", "answer_start": 2}]
            qas = [
                {"id": f"{article}-{number}-{i}", "question": "Which one is it?", "answers": answers} for i in range(2)
            ]
            paragraphs.append({"context": f"A red house {article} {number} and a tree, that is all.", "qas": qas})
        articles.append({"title": f"House_{article}", "paragraphs": paragraphs})
    question = articles[0]["paragraphs"][0]["qas"][0]
    question.update(first_question)
    for name in [name for name, value in first_question.items() if value is None]:
        del question[name]
    folder.mkdir()
    (folder / "houses.json").write_text(json.dumps({"version": "v2.0", "data": articles}))
    return folder


GOOD = "text,label\n" + "".join(f"sentence number {i},{'yes' if i % 2 else 'no'}\n" for i in range(200))

CASES = {
    "unknown dataset": (["--dataset", "sst3"], "sst3"),
    "unknown model": (["--model_name_or_path", "no-such-model"], "'no-such-model' is neither a model folder"),
    "unknown flag": (["--learning_rat", "1"], "did you mean --learning_rate"),
    "value of the wrong type": (["--num_train_epochs", "many"], "invalid int value: 'many'"),
    "value out of range": (["--warmup_ratio", "2"], "accepted are values from 0 to 1"),
    "missing file": (["--dataset", "{tmp}/absent.csv"], "absent.csv"),
    "missing column": (["--dataset", "{csv}", "--text_column", "sentence"], "sentence"),
    "empty file": (["--dataset", "{empty}"], "empty.csv"),
    "one class only": (["--dataset", "{one}"], "one.csv"),
    "missing label": (["--dataset", "{hole}"], "label"),
    "label outside the range": (["--dataset", "spotify", "--data_dir", "{ratings}"], "7"),
    "not UTF-8": (["--dataset", "{latin}"], "UTF-8"),
    "freeze_layers above the depth": ([*TINY, "--freeze_layers", "3"], "--freeze_layers 3: this bert has 2 layer(s)"),
    "text longer than the model": (["--max_length", "600"], "512"),
    "checkpoint of another task": (["--model_name_or_path", "{qa}"], "question-answering checkpoint"),
    "unknown run": (["--resume_run_id", "1234"], "1234"),
    "run of a model that is not there": (["--model_name_or_path", "runs:/1234/checkpoints/best"], "1234"),
    "model that is not registered": (["--model_name_or_path", "models:/absent@champion"], "absent"),
    "fp16 without a GPU": ([*TINY, "--mixed_precision", "fp16"], "--mixed_precision fp16"),
    "name that cannot be registered": (["--register_as", "a/b"], "register_as"),
    "answer that is not where the file says": (
        ["--dataset", "squad_v2", "--data_dir", "{offset}"],
        "question '0-0-0': answer 'red house' is not at character 3 of the context, where 'ed house ' stands",
    ),
    "two questions of one id": (["--dataset", "squad_v2", "--data_dir", "{twice}"], "question '0-0-1': a repeated id"),
    "no field answers": (["--dataset", "squad_v2", "--data_dir", "{none}"], "question '0-0-0': no field 'answers'"),
    "question longer than the window": (
        [*TINY, "--dataset", "squad_v2", "--data_dir", "{squad}", "--max_length", "10", "--doc_stride", "4"],
        "the special tokens take 8 of them and leave no room for windows that overlap by --doc_stride 4; "
        "accepted: --max_length of at least 13",
    ),
    "weights of classes that are not there": (
        ["--dataset", "squad_v2", "--data_dir", "{squad}", "--class_weights", "balanced"],
        "--class_weights 'balanced': 'squad_v2' has no classes to weigh",
    ),
    "weights for another number of classes": (
        [*TINY, "--class_weights", "1,2,3"],
        "--class_weights '1,2,3': accepted are 'balanced' or 2 numbers above 0",
    ),
    "unknown type of checkpoints": (
        ["--checkpoint_dtype", "int8"],
        "--checkpoint_dtype 'int8': accepted are float32, bfloat16, float16",
    ),
    "embeddings for another family": (
        ["--model_name_or_path", "{checkpoints}/distilbert", "--embeddings", "fft"],
        "is an encoder of the family 'distilbert'; accepted are encoders of the family 'bert'",
    ),
    "embeddings other than the checkpoint's": (
        ["--model_name_or_path", "{checkpoints}/fft_bert", "--embeddings", "conv2d"],
        "is a checkpoint with 'fft' embeddings",
    ),
    "unpadded with a family that cannot": (
        ["--model_name_or_path", "{checkpoints}/flaubert", "--unpadded", "true", "--max_train_samples", "20"],
        "--unpadded true: this flaubert computes with padding only",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_one_line_and_status_2(command, workplace, checkpoints, tmp_path, case):
    argv, message = CASES[case]
    if case == "fp16 without a GPU" and shutil.which("nvidia-smi"):
        pytest.skip("there is a GPU here")
    (tmp_path / "ratings").mkdir()
    _csv(tmp_path / "ratings", "text,rating,source,date\n" + "fine,7,x,\n" * 3, "ratings_1_5.csv")
    places = {
        "tmp": tmp_path,
        "csv": _csv(tmp_path, GOOD),
        "empty": _csv(tmp_path, "", "empty.csv"),
        "one": _csv(tmp_path, GOOD.replace(",yes", ",no"), "one.csv"),
        "hole": _csv(tmp_path, GOOD.replace("number 3,yes", "number 3,"), "hole.csv"),
        "latin": _csv(tmp_path, GOOD.replace("number 5", "numéro 5"), "latin.csv", "latin-1"),
        "ratings": tmp_path / "ratings",
        "qa": tmp_path / "qa",
        "checkpoints": checkpoints["bert"].parent,
        "squad": _squad(tmp_path / "squad"),
        "offset": _squad(tmp_path / "offset", answers=[{"text": "red house", "answer_start": 3}]),
        "twice": _squad(tmp_path / "twice", id="0-0-1"),
        "none": _squad(tmp_path / "none", answers=None),
    }
    if "{qa}" in argv:
        shutil.copytree(checkpoints["bert"], places["qa"])
        AutoModelForQuestionAnswering.from_pretrained(checkpoints["bert"]).save_pretrained(places["qa"])
    status, err = command(*(argument.format(**places) if "{" in argument else argument for argument in argv))
    assert status == 2, err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in err
    assert all(run.info.status == "FAILED" for run in workplace.runs())


def test_mlflow_that_does_not_answer(command, workplace):
    workplace.uri = "http://127.0.0.1:9"
    status, err = command(*TINY)
    assert status == 2
    assert "127.0.0.1:9" in err
    assert "Traceback" not in err


def test_folder_that_cannot_be_written(command, workplace, monkeypatch, tmp_path):
    (tmp_path / "cache").write_text("a file, where a folder should be")
    status, err = command(*TINY)
    assert status == 2
    assert "BERTDYN_CACHE" in err


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_leaves_earlier_checkpoints_whole(workplace, tmp_path):
    """A real, small file system that has room for two checkpoints and a half."""
    workplace.run(*TINY, "--num_train_epochs", "1")
    [first] = workplace.runs()
    size = sum(f.stat().st_size for f in (artifacts(first) / "checkpoints/epoch_001").iterdir())
    state = (artifacts(first) / "checkpoints/training_state.safetensors").stat().st_size
    disk = tmp_path / "disk"
    disk.mkdir()
    room = int(2.5 * size + 1.2 * state) + 3_000_000
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(disk)], check=True)
    try:
        client = workplace.client()
        experiment = client.create_experiment("small-disk", artifact_location=f"file://{disk}")
        done = subprocess.run(
            [sys.executable, "-m", "entrypoints.fine_tune", *TINY, "--num_train_epochs", "5"],
            cwd=ROOT,
            env=workplace.environment | {"MLFLOW_EXPERIMENT_NAME": "small-disk"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2, done.stderr
        [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert "No space left on device" in line
        assert "earlier checkpoints are intact" in line
        [run] = client.search_runs([experiment])
        assert run.info.status == "FAILED"
        folder = artifacts(run) / "checkpoints"
        manifest = json.loads((folder / "manifest.json").read_text())
        kept = sorted(path.name for path in folder.iterdir() if path.is_dir())
        assert kept == [f"epoch_{epoch['epoch']:03d}" for epoch in manifest["history"]]
        for name in kept:
            assert (folder / name / "model.safetensors").stat().st_size > 1_000_000
        assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
