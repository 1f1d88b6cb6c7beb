"""Probing by command, of runs that were fine-tuned and extracted by command: labels, columns, questions, bad input."""

import json
import subprocess
import sys
from dataclasses import dataclass

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.entities import Run

from bertdyn.steps import random_twin as twins
from bertdyn.steps.extract_runs import open_extract_run
from bertdyn.steps.random_twin import random_twin
from entrypoints import compare, probe
from tests.end_to_end.conftest import ROOT, TINY, Workplace, artifacts, make_workplace
from tests.squad_files import write_squad

DATA = ("--max_train_samples", "600", "--max_validation_samples", "60", "--max_probe_samples", "60",
        "--max_test_samples", "60")  # fmt: skip
TRAINING = ("--num_train_epochs", "2", "--per_device_train_batch_size", "16")


@dataclass
class Source:
    """A fine-tuned encoder and the features of every epoch."""

    workplace: Workplace
    model: str
    tuned: Run
    extracted: Run

    def newest(self) -> Run:
        return self.workplace.runs()[0]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Source:
    workplace = make_workplace(tmp_path_factory.mktemp("probe"))
    model = "minilm"
    workplace.run(*DATA, *TRAINING, "--learning_rate", "3e-4")
    [tuned] = workplace.runs()
    options = ("--source_run_id", tuned.info.run_id, "--states", "all", "--parts", "probe,test")
    workplace.run(*options, module="entrypoints.extract")
    return Source(workplace, model, tuned, workplace.runs()[0])


@pytest.fixture
def command(run_here):
    return lambda workplace, *argv, of=probe: run_here(workplace, of, *argv)


@pytest.fixture(scope="module")
def probed(source) -> tuple[Run, str]:
    """By `python -m`."""
    options = ("--source_run_id", source.extracted.info.run_id, "--targets", "label,num_words")
    out = source.workplace.run(*options, module="entrypoints.probe")
    return source.newest(), out


def table(run: Run) -> pd.DataFrame:
    return pd.read_parquet(artifacts(run) / "probes.parquet")


def test_the_run_in_mlflow(source, probed):
    run, out = probed
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "probe-synthetic-minilm-s0"
    assert f"run id   {run.info.run_id}" in out
    assert "go on" not in out  # without texts of train there is nothing to train dictionaries on
    tags = run.data.tags
    assert tags["bertdyn.stage"] == "probe"
    assert tags["bertdyn.source_run_id"] == source.extracted.info.run_id
    assert (tags["bertdyn.dataset"], tags["bertdyn.model"]) == ("synthetic", source.model)
    note = tags["mlflow.note.content"]
    assert note.startswith("## What the layers of `synthetic-minilm-s0` know")
    summary = (artifacts(run) / "summary.md").read_text()
    assert summary in out
    assert summary.startswith(note[:6000])  # a store takes only the beginning of a long page
    assert "TF-IDF" in note[:2000]
    names = {str(path.relative_to(artifacts(run))) for path in artifacts(run).rglob("*") if path.is_file()}
    figures = {"label_by_layer", "num_words_by_layer", "probe_heatmaps", "selectivity", "code_length", "paired_label",
               "paired_num_words", "transfer"}  # fmt: skip
    assert {name for name in names if name.startswith("figures/")} == {f"figures/{name}.png" for name in figures}
    assert {f"{name}.parquet" for name in ("probes", "paired_tests", "transfer")} <= names
    of_probes = {"label-logistic-first", "label-logistic-mean", "num_words-ridge-first", "num_words-ridge-mean"}
    assert {f"predictions/{name}.parquet" for name in of_probes} <= names
    assert {f"probes/{name}.safetensors" for name in of_probes} <= names
    own = table(run).query("baseline == 'none' and metric in ['accuracy', 'r2']")
    points = source.workplace.points(run.info.run_id)
    states = ["pretrained", "epoch_001", "epoch_002"]
    for row in own.itertuples():
        key = f"probe/{row.target}/{row.probe}_{row.rows}/layer_{row.layer:02d}"
        assert points[key, states.index(row.state)] == [pytest.approx(row.value)]
    assert len(points) == len(own) == 2 * 2 * 7 * 3


def test_fine_tuning_puts_the_label_where_it_was_not(probed):
    own = table(probed[0]).query("target == 'label' and metric == 'accuracy' and rows == 'first'")
    of = own[own["baseline"] == "none"].set_index(["state", "layer"])
    random = own[own["baseline"] == "random_init"].set_index("layer")
    assert of.loc[("epoch_002", 6), "value"] > of.loc[("pretrained", 6), "high"]
    assert of.loc[("epoch_002", 6), "low"] > random.loc[6, "high"]
    # At layer 0 the first token is the same in all texts: nothing can be read.
    assert of.loc[("epoch_002", 0), "low"] < 0.6


def test_mlflow_run_gives_the_same_tables(source, probed):
    first, _ = probed
    done = subprocess.run(
        [sys.executable, "-m", "mlflow", "run", ".", "-e", "probe", "--env-manager", "local",
         "-P", f"source_run_id={source.extracted.info.run_id}", "-P", "targets=label,num_words"],
        cwd=ROOT,
        env=source.workplace.environment,
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = source.newest()
    assert run.info.run_id != first.info.run_id
    assert (run.info.status, run.info.run_name) == ("FINISHED", first.info.run_name)
    pd.testing.assert_frame_equal(table(run), table(first), rtol=1e-9)
    configs = [json.loads((artifacts(r) / "config.json").read_text()) for r in (first, run)]
    assert configs[0] == configs[1]


def test_geometry_and_accuracy(source, command):
    status, err = command(source.workplace, "--source_run_id", source.extracted.info.run_id, of=compare)
    assert status == 0, err
    compared = source.newest().info.run_id
    options = ("--source_run_id", source.extracted.info.run_id, "--rows", "mean", "--random_init", "false")
    status, err = command(source.workplace, *options, "--compare_run_id", compared)
    assert status == 0, err
    run = source.newest()
    found = pd.read_parquet(artifacts(run) / "associations.parquet")
    assert {"cka (content)", "within_text_cosine (content)"} <= set(found["measure"])
    assert "random_init" not in set(table(run)["baseline"])
    assert (artifacts(run) / "figures/association_label_mean_logistic.png").exists()


def test_random_twin(source, monkeypatch):
    """The same tokens of the same texts, other features; made once, and again for another seed."""
    for name, value in source.workplace.environment.items():
        if name.startswith(("MLFLOW_", "BERTDYN_CACHE")):
            monkeypatch.setenv(name, value)
    mlflow.set_tracking_uri(source.workplace.uri)
    run = open_extract_run(source.extracted.info.run_id, "all")
    options = {"parts": ["test"], "rows": ["tokens"], "layers": [0, 6]}
    twin = random_twin(run, **options, seed=0)
    examples = run.store.examples().query("part == 'test'")
    pd.testing.assert_frame_equal(twin.examples()[["example_id", "text", "n_rows"]], examples.reset_index(drop=True)[
        ["example_id", "text", "n_rows"]])  # fmt: skip
    first, last = examples["first_row"].iloc[0], examples["first_row"].iloc[-1] + examples["n_rows"].iloc[-1]
    np.testing.assert_array_equal(twin.tokens(["token_id"]), run.store.tokens(["token_id"])[first:last])
    random, real = twin.array("tokens", "random_init", 6), run.store.array("tokens", "pretrained", 6)[first:last]
    assert random.shape == real.shape
    assert abs(np.corrcoef(random.ravel(), real.ravel())[0, 1]) < 0.1
    monkeypatch.setattr(twins, "load_encoder", None)  # nothing is made again
    np.testing.assert_array_equal(random_twin(run, **options, seed=0).array("tokens", "random_init", 6), random)
    monkeypatch.undo()
    for name, value in source.workplace.environment.items():
        if name.startswith(("MLFLOW_", "BERTDYN_CACHE")):
            monkeypatch.setenv(name, value)
    assert not np.array_equal(random_twin(run, **options, seed=1).array("tokens", "random_init", 6), random)


def test_bad_input(source, probed, command):
    """One line, status 2, no new run; what needs the texts leaves one that says FAILED."""
    extracted, tuned = source.extracted.info.run_id, source.tuned.info.run_id
    before = len(source.workplace.runs())
    for argv, message in (
        ((), "give --source_run_id <extract run>"),
        (("--source_run_id", tuned), f"run {tuned} is of stage fine-tune; accepted are runs of extract"),
        (("--source_run_id", "0" * 32), "0" * 32),
        (("--source_run_id", extracted, "--states", "best,epoch_009"), "has no state 'best'"),
        (("--source_run_id", extracted, "--probes", "svm"), "--probes 'svm': accepted are logistic"),
        (("--source_run_id", extracted, "--inverse_penalties", "0,1"), "--inverse_penalties '0,1'"),
        (("--source_run_id", extracted, "--num_folds", "2"), "--num_folds 2"),
    ):
        status, err = command(source.workplace, *argv)
        assert (status, err.count("\n")) == (2, 1), err
        assert message in err
    assert len(source.workplace.runs()) == before
    for argv, message in (
        (("--targets", "nonsense"), "--targets 'nonsense'"),
        (("--targets", "span"), "--targets 'span': run"),
        (("--part", "train"), "--part 'train': these texts trained or selected"),
        (("--layers", "9"), "--layers '9'"),
        (("--compare_run_id", extracted), "is of stage extract; accepted are runs of compare"),
        (("--max_examples", "12", "--num_folds", "12"), "fewer folds"),
    ):
        status, err = command(source.workplace, "--source_run_id", extracted, *argv)
        assert (status, err.count("\n")) == (2, 1), err
        assert message in err
        assert source.newest().info.status == "FAILED"


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> Source:
    """Fine-tuned on questions, tiny and from scratch, and the features of all that span probes need."""
    folder = tmp_path_factory.mktemp("questions")
    workplace = make_workplace(folder)
    squad = str(write_squad(folder / "squad"))
    options = (*TINY[:4], "--dataset", "squad_v2", "--max_length", "64", "--doc_stride", "16", *TRAINING)
    workplace.run(*options, "--learning_rate", "1e-3", "--data_dir", squad)
    [tuned] = workplace.runs()
    options = ("--source_run_id", tuned.info.run_id, "--parts", "train,validation,probe")
    workplace.run(*options, module="entrypoints.extract")
    return Source(workplace, "minilm", tuned, workplace.runs()[0])


def test_span_probes(questions, command):
    extracted = questions.extracted.info.run_id
    out = questions.workplace.run("--source_run_id", extracted, module="entrypoints.probe")
    run = questions.newest()
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.note.content"] in out
    assert f"go on    mlflow run . -e sae --env-manager local -P source_run_id={extracted}" in out
    found = table(run)
    assert set(found["target"]) == {"span"}
    assert {"none", "majority", "random_init"} <= set(found["baseline"])
    labels = pd.read_parquet(artifacts(questions.extracted) / "features/examples.parquet").query("part == 'probe'")
    null = found[(found["baseline"] == "majority") & (found["metric"] == "f1")]["value"]
    assert null.tolist() == [pytest.approx((labels["label"] == 0).mean())]
    for state in ("pretrained", "best", "random_init"):
        answers = json.loads((artifacts(run) / f"predictions/{state}/layer_02.json").read_text())
        assert set(answers) == set(labels["example_id"])
    options = ("--targets", "num_characters", "--num_folds", "3", "--rows", "first")
    status, err = command(questions.workplace, "--source_run_id", extracted, *options)
    assert status == 0, err
    assert set(table(questions.newest())["target"]) == {"num_characters"}
