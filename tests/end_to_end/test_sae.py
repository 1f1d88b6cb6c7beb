"""Sparse dictionaries by command, of runs that were fine-tuned and extracted by command: kills, pages, bad input."""

import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from mlflow.entities import Run
from safetensors.torch import load
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bertdyn.features.aligned import AlignedRows
from bertdyn.features.store import FeatureStore
from bertdyn.sae.dictionary import encode
from bertdyn.sae.export import load_dictionary, load_metadata
from bertdyn.sae.metrics import basis_of, measure
from bertdyn.sae.reading import read_text
from entrypoints import extract, sae
from tests.end_to_end.conftest import ROOT, TINY, Workplace, artifacts, make_workplace

OPTIONS = ("--width", "24", "--k", "3", "--num_train_epochs", "2", "--layers", "0,2",
           "--seeds", "0,1")  # fmt: skip
TORCHRUN = (
    "torch.distributed.run", ("--standalone", "--nproc_per_node", "2", "-m", "entrypoints.sae")
)  # fmt: skip
FEW = (*OPTIONS, "--page_latents", "4", "--random_init", "false")


@dataclass
class Source:
    """A fine-tuned encoder and its features before and after."""

    workplace: Workplace
    tuned: Run
    extracted: Run

    @property
    def option(self) -> tuple[str, str]:
        return "--source_run_id", self.extracted.info.run_id

    @property
    def store(self) -> FeatureStore:
        return FeatureStore.open(artifacts(self.extracted) / "features")

    def newest(self) -> Run:
        return self.workplace.runs()[0]

    def run(self, run_id: str) -> Run:
        return self.workplace.client().get_run(run_id)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Source:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # bytes are compared
        workplace = make_workplace(tmp_path_factory.mktemp("sae"))
        workplace.run(*TINY, "--num_train_epochs", "2")
        [tuned] = workplace.runs()
        options = ("--source_run_id", tuned.info.run_id, "--parts", "train,probe", "--rows", "tokens")
        workplace.run(*options, module="entrypoints.extract")
        yield Source(workplace, tuned, workplace.runs()[0])


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def command(source, run_here):
    return lambda *argv, of=sae: run_here(source.workplace, of, *argv)


@pytest.fixture(scope="module")
def studied(source) -> tuple[Run, str]:
    """By `python -m`, all comparisons."""
    out = source.workplace.run(*source.option, *OPTIONS, "--frontier", "2", module="entrypoints.sae")
    return source.newest(), out


def table(run: Run, name: str) -> pd.DataFrame:
    return pd.read_parquet(artifacts(run) / f"{name}.parquet")


def dictionary_folder(run: Run, comparison: str, state: str, layer: int, seed: int, sparsity: float) -> Path:
    return artifacts(run) / f"dictionaries/{comparison}/{state}/layer_{layer:02d}/seed_{seed}_{sparsity:g}"


def test_the_run_in_mlflow(source, studied):
    run, out = studied
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "sae-synthetic-minilm-scratch-s0"
    assert f"run id   {run.info.run_id}" in out
    assert f"results  {artifacts(run)}" in out
    assert "mlflow ui" in out
    tags = run.data.tags
    assert tags["bertdyn.stage"] == "sae"
    assert tags["bertdyn.source_run_id"] == source.extracted.info.run_id
    assert tags["bertdyn.dataset"] == "synthetic"
    summary, note = (artifacts(run) / "summary.md").read_text(), tags["mlflow.note.content"]
    assert note.startswith("## Sparse dictionaries of synthetic-minilm-scratch-s0")
    assert summary.startswith(note[:4000])
    assert summary in out
    assert "what the classifier of pretrained loses: its head is that before training" in summary
    files = {str(path.relative_to(artifacts(run))) for path in artifacts(run).rglob("*") if path.is_file()}
    figures = {"frontier", "densities", "fidelity", "sparse_probes", "fates", "cosines"}
    assert {name for name in files if name.startswith("figures/")} == {f"figures/{name}.png" for name in figures}
    tables = {"metrics", "fidelity", "sparse_probes", "fate_shares", "fates", "features", "feature_labels", "examples",
              "shown_latents"}  # fmt: skip
    assert {name for name in files if name.endswith(".parquet")} == {f"{name}.parquet" for name in tables}
    assert not [name for name in files if name.startswith("training")]
    assert [i.dataset.name for i in run.inputs.dataset_inputs] == ["synthetic-probe"]
    points = source.workplace.points(run.info.run_id)
    metrics = table(run, "metrics").query("comparison == 'independent' and sparsity == 3 and rows == 'content'")
    for (state, layer), of in metrics.groupby(["state", "layer"]):
        step = ["pretrained", "best"].index(state)
        assert points[f"sae/fvu_standardized/layer_{layer:02d}", step] == [pytest.approx(of["fvu_standardized"].mean())]
    assert {step for key, step in points if "train" in key and "shared" in key} == {1, 2}
    config = json.loads((artifacts(run) / "config.json").read_text())
    assert (config["width"], config["k"], config["resume_run_id"]) == (24, 3, None)


def test_mlflow_run_gives_the_same_tables(source, studied):
    first, _ = studied
    given = {"source_run_id": source.extracted.info.run_id, "width": 24, "k": 3, "num_train_epochs": 2, "frontier": 2,
             "layers": "0,2", "seeds": "0,1"}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "mlflow", "run", ".", "-e", "sae", "--env-manager", "local",
         *(part for name, value in given.items() for part in ("-P", f"{name}={value}"))],
        cwd=ROOT,
        env=source.workplace.environment,
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = source.newest()
    assert run.info.run_id != first.info.run_id
    assert (run.info.status, run.info.run_name) == ("FINISHED", first.info.run_name)
    for path in artifacts(first).glob("*.parquet"):
        pd.testing.assert_frame_equal(pd.read_parquet(artifacts(run) / path.name), pd.read_parquet(path), rtol=1e-9)
    configs = [json.loads((artifacts(r) / "config.json").read_text()) for r in (first, run)]
    assert configs[0] == configs[1]
    assert weights(run) == weights(first)


def test_two_processes_give_the_same_tables(source, studied, tmp_path):
    """Each trains some of the layers, and makes its share of the random twin (of so few texts: all, or nothing)."""
    one, _ = studied
    done = subprocess.run(
        [sys.executable, "-m", TORCHRUN[0], *TORCHRUN[1], *source.option, *OPTIONS, "--frontier", "2"],
        cwd=ROOT,
        # Without the twin, which is made anew.
        env=source.workplace.environment | {"BERTDYN_CACHE": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(re.findall("^run id ", done.stdout, re.M)) == 1
    two = source.newest()
    assert two.info.run_id != one.info.run_id
    assert two.info.status == "FINISHED"
    assert weights(one).keys() == weights(two).keys()
    for name, tensors in weights(one).items():
        ours, theirs = load(tensors), load(weights(two)[name])
        for of, tensor in ours.items():
            torch.testing.assert_close(
                theirs[of], tensor, rtol=1e-5, atol=1e-6, msg=lambda said, name=name: f"{name}: {said}"
            )
    keys = ["comparison", "state", "layer", "seed", "sparsity", "rows", "baseline"]
    first, second = (table(run, "metrics").sort_values(keys, ignore_index=True) for run in (one, two))
    pd.testing.assert_frame_equal(first, second, rtol=1e-5, atol=1e-6)
    curves = {
        run.info.run_id: {
            (key, step): values
            for (key, step), values in source.workplace.points(run.info.run_id).items()
            if "train/" in key
        }
        for run in (one, two)
    }
    ours, theirs = curves[one.info.run_id], curves[two.info.run_id]
    assert ours
    assert set(theirs) == {(f"{key}/layers_{layer}", step) for key, step in ours for layer in (0, 2)}
    for (key, step), [value] in ours.items():  # mean over the layers
        each = [theirs[f"{key}/layers_{layer}", step][0] for layer in (0, 2)]
        assert value == pytest.approx(np.mean(each), rel=1e-5)


def weights(run: Run) -> dict[str, bytes]:
    folder = artifacts(run) / "dictionaries"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.safetensors")}


def test_a_stored_dictionary_gives_the_error_of_the_table(source, studied):
    run, _ = studied
    aligned = AlignedRows([(source.store, "best")], "probe")
    rows, _ = aligned.content_rows(10**9, seed=0)
    metrics = table(run, "metrics").query("rows == 'content' and baseline == 'none'")
    assert set(metrics["comparison"]) == {"independent", "shared", "stagewise", "control"}
    for row in metrics.sample(12, random_state=0).itertuples():
        folder = dictionary_folder(run, row.comparison, row.state, row.layer, row.seed, row.sparsity)
        dictionary = load_dictionary(folder)
        state = "pretrained" if row.comparison == "control" else row.state
        block = torch.from_numpy(source.store.array("tokens", state, row.layer)[rows]).float()
        found = measure(basis_of(dictionary), [block], dictionary.scale)
        assert (found.rows, found.l0) == (row.num_rows, pytest.approx(row.l0))
        assert found.fvu == pytest.approx(row.fvu, rel=1e-5)
        assert found.fvu_standardised == pytest.approx(row.fvu_standardized, rel=1e-5)
        known = load_metadata(folder)
        assert (known["layer"], known["extract_run_id"]) == (row.layer, source.extracted.info.run_id)


def test_examples_are_what_the_checkpoint_says_of_the_text(source, studied):
    """From the stored row, and from the text alone by the checkpoint."""
    run, _ = studied
    examples = table(run, "examples")
    texts = source.store.examples().set_index("example_id")
    folders = {info.name: info.folder for info in source.store.manifest.states}
    models = {}
    for row in examples.sample(20, random_state=1).itertuples():
        dictionary = load_dictionary(dictionary_folder(run, row.comparison, row.state, row.layer, row.seed, 3))
        stored = source.store.array("tokens", row.state, row.layer)[[row.row]]
        assert float(encode(dictionary, torch.from_numpy(stored))[0, row.latent]) == pytest.approx(
            row.activation, rel=1e-5
        )
        assert texts.loc[row.example_id, "part"] == "probe"
        place = artifacts(source.tuned) / "checkpoints" / folders[row.state]
        if place not in models:
            models[place] = (
                AutoModelForSequenceClassification.from_pretrained(place),
                AutoTokenizer.from_pretrained(place),
            )
        text = texts.loc[row.example_id, "text"]
        read = read_text(*models[place], dictionary, row.layer, [text], latents=[row.latent])
        here = read[read["position"] == row.position]
        assert here["activation"].tolist() == [pytest.approx(row.activation, rel=0.03, abs=0.03)]


def test_pages_stand_alone(source, studied):
    run, _ = studied
    pages = sorted((artifacts(run) / "pages").iterdir())
    assert [page.name for page in pages] == sorted(
        f"{comparison}_layer_{layer:02d}.html"
        for comparison in ("shared", "stagewise", "independent")
        for layer in (0, 2)
    )
    examples = table(run, "examples")
    texts = source.store.examples().set_index("example_id")["text"]
    for page in pages:
        html = page.read_text()
        assert run.info.run_id in html
        assert not re.search(r"""\b(?:src|href)=["'](?!#)""", html)
        assert not re.search(r"url\(|@import|https?://", html.replace("http://www.w3.org/", ""))
    [of_shared] = [page.read_text() for page in pages if page.name == "shared_layer_02.html"]
    for row in examples.query("comparison == 'shared' and layer == 2").sample(5, random_state=0).itertuples():
        assert texts[row.example_id].split()[0] in of_shared


def test_what_the_classifier_loses(source, studied):
    found = table(studied[0], "fidelity")
    assert set(found["state"]) == {"best"}
    assert "control" not in set(found["comparison"])  # of another state's rows
    assert {"dictionary", "pca", "random_dictionary", "mean", "zero"} == set(found["replacement"])
    logits, examples = source.store.logits("best"), source.store.examples()
    probe = (examples["part"] == "probe").to_numpy()
    accuracy = (logits.argmax(axis=1) == examples["label"])[probe].mean()
    np.testing.assert_allclose(found["accuracy_clean"], accuracy)
    assert set(found["texts"]) == {40}


@pytest.mark.parametrize("launcher", [("entrypoints.sae", ()), TORCHRUN], ids=["one process", "two"])
def test_killed_and_resumed_is_uninterrupted(source, command, launcher):
    module, before = launcher
    options = (*before, *source.option, *FEW)
    source.workplace.run(*options, module=module)
    whole = source.newest()
    process = source.workplace.start(*options, "--num_train_epochs", "2", module=module)
    try:
        deadline = time.monotonic() + 200
        reached = None
        while reached is None and time.monotonic() < deadline and process.poll() is None:
            cut = source.newest()
            states = sorted(path.name for path in (artifacts(cut) / "training").glob("*.safetensors"))
            reached = cut if cut.info.run_id != whole.info.run_id and len(states) >= 2 else None
            time.sleep(0.01)
        assert reached is not None, process.communicate()
    finally:
        for one in [*psutil.Process(process.pid).children(recursive=True), process]:
            one.send_signal(signal.SIGKILL)
        process.communicate()
    cut = reached
    assert not (artifacts(cut) / "metrics.parquet").exists()
    source.workplace.run(*before, "--resume_run_id", cut.info.run_id, module=module)
    assert source.run(cut.info.run_id).info.status == "FINISHED"
    assert not (artifacts(cut) / "training").exists()
    assert weights(cut) == weights(whole)
    for path in artifacts(whole).glob("*.parquet"):
        pd.testing.assert_frame_equal(pd.read_parquet(artifacts(cut) / path.name), pd.read_parquet(path))
    points = source.workplace.points(cut.info.run_id)
    assert all(len(values) == 1 for values in points.values())
    expected = source.workplace.points(whole.info.run_id)
    assert {key: values for key, values in points.items() if "time" not in key[0]} == {
        key: values for key, values in expected.items() if "time" not in key[0]}  # fmt: skip
    status, err = command("--resume_run_id", cut.info.run_id, "--k", "4")
    assert (status, err.count("\n")) == (2, 1), err
    assert "--k 4: run" in err


def test_first_tokens_of_pooled_features(source, command):
    """Without token rows: nothing to read on pages, and no means to ablate with."""
    options = ("--source_run_id", source.tuned.info.run_id, "--parts", "train,probe", "--rows", "first,mean")
    status, err = command(*options, of=extract)
    assert status == 0, err
    pooled = source.newest().info.run_id
    few = ("--width", "8", "--k", "2", "--num_train_epochs", "1", "--per_device_train_batch_size", "32",
           "--layers", "2", "--seeds", "0", "--random_init", "false")  # fmt: skip
    for rows in ("first", "mean"):
        status, err = command("--source_run_id", pooled, *few, "--rows", rows)
        assert status == 0, err
        run = source.newest()
        assert set(table(run, "metrics")["rows"]) == {rows}
        assert not (artifacts(run) / "pages").exists()


def test_bad_input(source, studied, command):
    """One line, status 2, no new run; what needs the features leaves one that says FAILED."""
    extracted, tuned = source.extracted.info.run_id, source.tuned.info.run_id
    before = len(source.workplace.runs())
    for argv, message in (
        ((), "give --source_run_id <extract run>"),
        (("--source_run_id", tuned), f"run {tuned} is of stage fine-tune; accepted are runs of extract"),
        (("--source_run_id", studied[0].info.run_id), "is of stage sae; accepted are runs of extract"),
        (("--source_run_id", "0" * 32), "0" * 32),
        (("--source_run_id", extracted, "--states", "best,epoch_009"), "has no state 'epoch_009'"),
        (("--source_run_id", extracted, "--rows", "tokens"), "--rows 'tokens': accepted are content, first, mean"),
        (("--source_run_id", extracted, "--part", "train"), "--part 'train': accepted are probe, test"),
        (("--source_run_id", extracted, "--part", "validation"), "--part 'validation': accepted are probe, test"),
        (("--source_run_id", extracted, "--train_parts", "train,probe"), "--part 'probe': dictionaries are trained on"),
        (("--source_run_id", extracted, "--k", "0"), "--k 0: accepted are values from 1"),
        (("--resume_run_id", studied[0].info.run_id), "has already finished"),
        (("--resume_run_id", extracted), extracted),
    ):
        status, err = command(*argv)
        assert (status, err.count("\n")) == (2, 1), err
        assert message in err
    assert len(source.workplace.runs()) == before
    for argv, message in (
        (("--width", "2000"), "--width: "),
        (("--layers", "9"), "--layers '9'"),
        (("--states", "best,pretrained", "--width", "24", "--k", "3"), "--states 'best,pretrained'"),
    ):
        status, err = command("--source_run_id", extracted, *argv)
        assert (status, err.strip().count("error: ")) == (2, 1), err
        assert message in err.strip().splitlines()[-1]
        assert source.newest().info.status == "FAILED"


def test_a_source_that_is_not_finished(source, command, monkeypatch):
    def cut(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("bertdyn.steps.extraction.extract_state", cut)
    options = ("--source_run_id", source.tuned.info.run_id, "--parts", "train,probe", "--layers", "2")
    status, _ = command(*options, of=extract)
    assert status == 130
    unfinished = source.newest().info.run_id
    monkeypatch.undo()
    before = len(source.workplace.runs())
    status, err = command("--source_run_id", unfinished)
    assert (status, err.count("\n")) == (2, 1), err
    assert unfinished in err
    assert f"--resume_run_id {unfinished}" in err
    assert len(source.workplace.runs()) == before
