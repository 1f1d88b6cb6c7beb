"""The pipeline by command: all steps of a tiny encoder under one run; what was done is not done again."""

import json
import signal
import subprocess
import time
from pathlib import Path

import nbformat
import pytest
import yaml
from nbclient import NotebookClient

from tests.end_to_end.conftest import ROOT, TINY, Workplace, artifacts, make_workplace

MAIN = "entrypoints.main"
STEPS = {
    "fine-tune": dict(zip((name.removeprefix("--") for name in TINY[0::2]), TINY[1::2], strict=True))
    | {"num_train_epochs": 2},
    "extract": {"source_run_id": "fine-tune", "rows": "tokens,first,mean"},
    "compare": {"source_run_id": "extract"},
    "probe": {"source_run_id": "extract", "num_folds": 3, "compare_run_id": "compare"},
    "sae": {"source_run_id": "extract", "layers": 1, "seeds": 0, "num_train_epochs": 1, "k": 8},
    "prune": {
        "source_run_id": "fine-tune", "budget": 0.7, "num_train_epochs": 1, "calibration_examples": 40,
        "controls": "random", "latency_shapes": "none", "export_onnx": False,
    },
    "sweep-pruning": {
        "source_run_id": "fine-tune", "n_trials": 3, "seeds": 0, "num_train_epochs": 1, "calibration_examples": 40,
        "controls": "none", "latency_shapes": "none", "export_onnx": False,
    },
}  # fmt: skip


def write_preset(folder: Path) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({"title": "All of it, tiny", "steps": STEPS}, sort_keys=False))
    return path


@pytest.fixture
def preset(tmp_path):
    return write_preset(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Workplace, tuple[str, ...], str]:
    """A pipeline that came to its end: where, its options, and what it printed."""
    workplace = make_workplace(tmp_path_factory.mktemp("main"))
    options = ("--preset", str(write_preset(workplace.folder)))
    options += ("--overrides", f"{{sweep-pruning: {{storage: {workplace.folder / 'optuna.journal'}}}}}")
    return workplace, options, workplace.run(*options, module=MAIN)


def parents(workplace: Workplace):
    """The newest first."""
    return workplace.runs(filter_string="tags.bertdyn.stage = 'pipeline'")


def inside(workplace: Workplace, parent):
    found = workplace.runs(filter_string=f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    return {run.data.tags["bertdyn.stage"]: run for run in found}


def test_everything_once_then_only_what_changed(finished):
    workplace, options, said = finished
    [parent] = parents(workplace)
    assert parent.info.status == "FINISHED"
    assert parent.info.run_name == "tiny-synthetic-minilm"
    assert f"run id   {parent.info.run_id}" in said
    runs = inside(workplace, parent)
    assert list(reversed(runs)) == list(STEPS)
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    folder = artifacts(parent)
    assert json.loads((folder / "runs.json").read_text()) == {name: run.info.run_id for name, run in runs.items()}
    for name, run in runs.items():
        assert parent.data.tags[f"bertdyn.step.{name}"] == run.info.run_id
        assert run.info.run_name == f"{name}-synthetic-minilm-scratch-s0"
    assert runs["extract"].data.tags["bertdyn.source_run_id"] == runs["fine-tune"].info.run_id
    assert runs["sae"].data.tags["bertdyn.source_run_id"] == runs["extract"].info.run_id
    note = parent.data.tags["mlflow.note.content"]
    assert note.startswith("## All of it, tiny")
    told = (
        "How good is the fine-tuned model?", "TF-IDF", "What does fine-tuning leave", "Where can label",
        "How much do sparse features leave", "fewer encoder parameters lose", "What do 3 trials find",
    )  # fmt: skip
    for words in told:
        assert words in note
    for run in runs.values():
        assert f"(#/experiments/{run.info.experiment_id}/runs/{run.info.run_id})" in note
    assert parent.data.metrics["fine-tune/accuracy"] == runs["fine-tune"].data.metrics["test/accuracy"]
    found = {"compare/least_cka", "probe/label_best", "prune/accuracy", "sweep-pruning/kl"}
    assert found <= parent.data.metrics.keys()
    names = [path.stem for path in sorted((folder / "figures").glob("*.png"))]
    assert names == [
        "1_fine-tune_dynamics_by_layer", "3_compare_similarity_by_layer", "4_probe_label_by_layer", "5_sae_fates",
        "6_prune_architecture", "7_sweep-pruning_pareto",
    ]  # fmt: skip

    again = workplace.run(*options, module=MAIN)
    second, first = parents(workplace)
    assert first.info.run_id == parent.info.run_id
    assert not inside(workplace, second)
    assert json.loads((artifacts(second) / "runs.json").read_text()) == json.loads((folder / "runs.json").read_text())
    assert again.count("(reused)") == len(STEPS)
    assert second.data.tags["mlflow.note.content"].partition("### The runs")[0] == note.partition("### The runs")[0]

    workplace.run(*options[:3], options[3][:-1] + ", probe: {num_folds: 4}}", module=MAIN)
    assert list(inside(workplace, parents(workplace)[0])) == ["probe"]

    # a run whose artifacts are gone is made again, and what starts from it is not, since it is the same
    (artifacts(runs["compare"]) / "summary.md").unlink()
    workplace.run(*options, module=MAIN)
    assert list(inside(workplace, parents(workplace)[0])) == ["compare"]


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_the_notebooks_run_from_top_to_bottom(finished, path, monkeypatch):
    workplace, _, _ = finished
    for name, value in workplace.environment.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(path, as_version=4)
    kept = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert kept, "stored with outputs"
    assert path.stat().st_size < 500_000, "but small ones"
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(path.parent)}}).execute()
    made = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output for output in made if output.output_type == "error"]
    for kind in ("text/html", "image/png"):
        assert sum(kind in output.get("data", ()) for output in made) >= 1


def test_what_a_step_cannot_do_ends_the_run_with_its_name(workplace, preset):
    found = workplace.run(
        "--preset", str(preset), "--overrides", "{sae: {layers: 9}, compare: {max_examples: 20}}", status=2, module=MAIN
    )
    assert "error: step 'sae': --layers '9': " in found
    assert "Traceback" not in found
    [parent] = parents(workplace)
    assert parent.info.status == "FAILED"
    assert {run.info.status for run in inside(workplace, parent).values()} <= {"FINISHED", "FAILED"}
    assert json.loads((artifacts(parent) / "runs.json").read_text()).keys() == {
        "fine-tune", "extract", "compare", "probe"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset", "slow"), "--preset 'slow': there is no such file; accepted are full, quick"),
        (("--overrides", "{sae: {kk: 3}}"), "step 'sae': unknown option --kk"),
        (("--num_train_epochs", "0"), "--num_train_epochs 0: accepted are values from 1"),
        (("--dataset", "absent-dataset"), "absent-dataset"),
    ],
)
def test_bad_input_begins_no_run(workplace, arguments, message):
    found = workplace.run(*arguments, status=2, module=MAIN)
    assert message in found
    assert "Traceback" not in found
    assert all(run.info.status == "FAILED" for run in parents(workplace))


def test_a_pipeline_that_is_told_to_stop_goes_on_where_it_was(workplace, preset):
    process = workplace.start("--preset", str(preset), module=MAIN)
    deadline = time.monotonic() + 300
    while not workplace.runs(filter_string="tags.bertdyn.stage = 'compare'"):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    try:
        process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == 143
    [parent] = parents(workplace)
    assert parent.info.status == "KILLED"
    assert {name: run.info.status for name, run in inside(workplace, parent).items()} == {
        "fine-tune": "FINISHED", "extract": "FINISHED", "compare": "KILLED",
    }  # fmt: skip

    steps = {name: options for name, options in STEPS.items() if name in ("fine-tune", "extract", "compare")}
    preset.write_text(yaml.safe_dump({"title": "The beginning", "steps": steps}, sort_keys=False))
    said = workplace.run("--preset", str(preset), module=MAIN)
    assert said.count("(reused)") == 2
    assert list(inside(workplace, parents(workplace)[0])) == ["compare"]
