"""Extraction by command, from a run that was fine-tuned by command: states, processes, kills, bad input.

Run as a module, this file is the command itself, in small chunks that it computes slowly and writes down.
"""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bertdyn.data.synthetic import generate
from bertdyn.features import extraction, writing
from bertdyn.features.store import FeatureStore
from entrypoints import extract
from entrypoints.command import run as run_command
from tests.end_to_end.conftest import ROOT, TINY, Workplace, artifacts, make_workplace
from tests.features.test_extraction import same_folders

EXTRACT = "entrypoints.extract"
SLOWLY = "tests.end_to_end.test_extract"
LOG = "COMPUTED"
"""Where the slow command writes what it has computed: process, state and chunk a line."""
THREE = ("--states", "pretrained,step_000004,best")


@dataclass
class Source:
    """A fine-tuned model on a file of film reviews."""

    workplace: Workplace
    run: mlflow.entities.Run
    file: Path

    @property
    def option(self) -> tuple[str, str]:
        return "--source_run_id", self.run.info.run_id

    @property
    def states(self) -> dict[str, str]:
        return json.loads((artifacts(self.run) / "checkpoints/manifest.json").read_text())["states"]

    def newest(self):
        return self.workplace.runs()[0]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Source:
    workplace = make_workplace(tmp_path_factory.mktemp("extract"))
    file = workplace.folder / "films.csv"
    generate(600, 0, "train")[["text", "label"]].to_csv(file, index=False)
    workplace.run(*TINY, "--dataset", str(file), "--num_train_epochs", "2", "--log_spaced_checkpoints", "True")
    [run] = workplace.runs()
    return Source(workplace, run, file)


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    """Bytes are compared, and the number of threads may change the last bit of a sum."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def command(source, run_here):
    return lambda *argv: run_here(source.workplace, extract, *argv)


@pytest.fixture(scope="module")
def extracted(source):
    """The defaults, by `python -m`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        out = source.workplace.run(*source.option, module=EXTRACT)
    run = source.newest()
    return run, FeatureStore.open(artifacts(run) / "features"), out


def test_the_run_in_mlflow(source, extracted):
    run, store, out = extracted
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "extract-films.csv-minilm-scratch-s0"
    assert f"run id   {run.info.run_id}" in out
    assert f"compare --env-manager local -P source_run_id={run.info.run_id}" in out
    rows, texts = store.manifest.num_tokens, store.manifest.num_examples
    assert f"features: 2 states, {rows:,} tokens of {texts} texts: 0.00 GB in {store.folder}" in out
    tags = run.data.tags
    assert tags["bertdyn.stage"] == "extract"
    assert tags["bertdyn.source_run_id"] == source.run.info.run_id
    assert tags["bertdyn.dataset"] == str(source.file)
    note = tags["mlflow.note.content"]
    assert note.startswith(f"## Features of `{source.run.info.run_id}` on `films.csv`")
    assert (artifacts(run) / "summary.md").read_text() == note
    assert sorted(i.dataset.name for i in run.inputs.dataset_inputs) == ["films.csv-probe", "films.csv-train"]
    assert run.data.metrics["extract/rows"] == rows
    assert run.data.metrics["extract/tokens_per_second"] > 0
    size = sum(path.stat().st_size for path in store.folder.rglob("*.npy"))
    assert run.data.metrics["extract/gigabytes"] == pytest.approx(size / 1e9, rel=1e-2)


def test_states_are_those_of_the_checkpoints(source, extracted):
    """Accuracies and rows of both states, as the checkpoints themselves give them and the fine-tuning stored them."""
    run, store, _ = extracted
    assert store.states == ["pretrained", "best"]
    examples, tokens = store.examples(), store.tokens(["example_id", "token_id"])
    assert examples["part"].value_counts().to_dict() == {"train": 240, "probe": 40}
    theirs = FeatureStore.open(artifacts(source.run) / "features")
    probe = examples[examples["part"] == "probe"]
    assert probe["example_id"].tolist() == theirs.examples()["example_id"].tolist()
    folders = {info.name: info.folder for info in store.manifest.states}
    assert folders == {"pretrained": "epoch_000", "best": source.states["best"]}
    for state, checkpoint in folders.items():
        place = artifacts(source.run) / "checkpoints" / checkpoint
        model = AutoModelForSequenceClassification.from_pretrained(place).eval()
        tokenizer = AutoTokenizer.from_pretrained(place)
        for i in (0, 5, 239, 240, 279):
            first, count = examples.loc[i, ["first_row", "n_rows"]]
            rows = slice(first, first + count)
            inputs = tokenizer(examples["text"][i], return_tensors="pt")
            assert tokens["token_id"][rows].tolist() == inputs["input_ids"][0].tolist()
            with torch.inference_mode():
                output = model(**inputs, output_hidden_states=True)
            np.testing.assert_allclose(store.logits(state)[i], output.logits[0], atol=1e-5)
            for layer, hidden in enumerate(output.hidden_states):
                np.testing.assert_allclose(store.array("tokens", state, layer)[rows], hidden[0], atol=5e-3)
        inputs = tokenizer(examples["text"].tolist(), return_tensors="pt", padding=True)
        with torch.inference_mode():
            predicted = model(**inputs).logits.argmax(dim=1).numpy()
        assert examples[f"prediction_{state}"].tolist() == predicted.tolist()
        right = pd.Series(predicted == examples["label"]).groupby(examples["part"]).mean()
        row = f"| {state} | `{checkpoint}` | {right['train']:.3f} | {right['probe']:.3f} |"
        assert row in run.data.tags["mlflow.note.content"]
        assert probe[f"prediction_{state}"].tolist() == theirs.examples()[f"prediction_{checkpoint}"].tolist()
        for layer in theirs.layers("first"):
            found = store.array("tokens", state, layer)[probe["first_row"]]
            np.testing.assert_allclose(found, theirs.array("first", checkpoint, layer), atol=5e-3)
    manifest = store.manifest
    data = json.loads((artifacts(source.run) / "data.json").read_text())
    assert manifest.fingerprints["data"] == data["fingerprint"] == theirs.manifest.fingerprints["data"]
    assert manifest.fingerprints["tokenizer"] == theirs.manifest.fingerprints["tokenizer"]
    assert len({info.model for info in manifest.states}) == 2


def test_all_states_in_the_order_of_time(source, extracted, command):
    status, err = command(
        *source.option, "--states", "all", "--rows", "first", "--max_train_samples", "20", "--parts", "probe,train"
    )
    assert status == 0, err
    run = source.newest()
    store = FeatureStore.open(artifacts(run) / "features")
    steps = [f"step_{number:06d}" for number in (1, 2, 4, 8)]  # 15 updates an epoch
    assert store.states == ["pretrained", *steps, "epoch_001", "step_000016", "epoch_002"]
    _, whole, _ = extracted
    mine, theirs = store.examples(), whole.examples()
    expected = [*theirs["example_id"][240:], *theirs["example_id"][:20]]
    assert mine["example_id"].tolist() == expected
    best = source.states["best"]
    np.testing.assert_allclose(store.logits(best), whole.logits("best")[[*range(240, 280), *range(20)]], atol=1e-5)
    fingerprints = {info.name: info.model for info in store.manifest.states}
    assert len(set(fingerprints.values())) == 7  # the warmup begins with a learning rate of 0
    assert fingerprints["pretrained"] == fingerprints["step_000001"]
    assert {info.model for info in whole.manifest.states} == {fingerprints["pretrained"], fingerprints[best]}
    norms = [
        np.linalg.norm(store.array("first", state, 2) - store.array("first", "pretrained", 2)) for state in store.states
    ]
    assert norms[0] == norms[1] == 0 < norms[2] < norms[3] < norms[4] < norms[5]
    changed = re.findall(r"^\| (\w+) \| `(\w+)` \|", run.data.tags["mlflow.note.content"], flags=re.MULTILINE)
    assert [state for state, _ in changed[1:]] == store.states[1:]


def test_states_of_one_epoch_share_a_folder(source, command):
    number = source.states["best"]
    wanted = f"best,{number},last,epoch_000,pretrained"
    status, err = command(*source.option, "--states", wanted, "--layers", "0,-1", "--rows", "mean", "--parts", "test")
    assert status == 0, err
    run = source.newest()
    store = FeatureStore.open(artifacts(run) / "features")
    assert store.states == wanted.split(",")
    folders = {path.name for path in store.folder.iterdir() if path.is_dir()}
    assert folders == {"epoch_000", number, source.states["last"]}
    assert store.layers("mean") == [0, 2]
    np.testing.assert_array_equal(store.array("mean", "best", 2), store.array("mean", number, 2))
    examples = store.examples()
    assert examples["prediction_best"].tolist() == examples[f"prediction_{number}"].tolist()
    # the test part, which fine-tuning scored with its best state
    theirs = pd.read_parquet(artifacts(source.run) / "predictions.parquet").query("part == 'test'")
    theirs = theirs.set_index("example_id").loc[examples["example_id"]]
    assert examples["prediction_best"].tolist() == theirs["predicted"].tolist()
    accuracy = (examples["prediction_best"] == examples["label"]).mean()
    assert source.run.data.metrics["test/accuracy"] == pytest.approx(accuracy)


def test_mlflow_run_gives_the_same_run(source, extracted):
    first, store, _ = extracted
    done = subprocess.run(
        [sys.executable, "-m", "mlflow", "run", ".", "-e", "extract", "--env-manager", "local",
         "-P", f"source_run_id={source.run.info.run_id}"],
        cwd=ROOT,
        env=source.workplace.environment,
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = source.newest()
    assert run.info.run_id != first.info.run_id
    assert (run.info.status, run.info.run_name) == ("FINISHED", first.info.run_name)
    configs = [(artifacts(r) / "config.json").read_bytes() for r in (first, run)]
    assert configs[0] == configs[1]
    assert same_folders(store.folder, artifacts(run) / "features")
    for name in ("bertdyn.stage", "bertdyn.source_run_id", "mlflow.note.content"):
        assert run.data.tags[name] == first.data.tags[name]


# ---- small chunks, slowly ----


def main() -> None:
    extraction.BYTES_PER_CHUNK = 60_000
    writing.SECONDS_BETWEEN_SYNCS = 0
    write = extraction._ChunkRows.write

    def slowly(self, writer, state):
        write(self, writer, state)
        with Path(os.environ[LOG]).open("a") as log:
            log.write(f"{os.getpid()} {state} {self.chunk.name}\n")
        time.sleep(0.05)

    extraction._ChunkRows.write = slowly
    run_command(extract.main)


@pytest.fixture
def log(tmp_path, monkeypatch) -> Path:
    path = tmp_path / "computed"
    path.touch()
    monkeypatch.setenv(LOG, str(path))
    return path


def _computed(log: Path) -> pd.DataFrame:
    return pd.DataFrame([line.split() for line in log.read_text().splitlines()], columns=["process", "state", "chunk"])


def _start(source: Source, *options: str, processes: int) -> subprocess.Popen:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return subprocess.Popen(
        [sys.executable, *(torchrun if processes > 1 else []), "-m", SLOWLY, *options],
        cwd=ROOT,
        env=source.workplace.environment | {"CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _finish(process: subprocess.Popen) -> None:
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, f"{out}\n{err}"


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """Three states by one process in one go."""
    log = tmp_path_factory.mktemp("whole") / "computed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv(LOG, str(log))
        _finish(_start(source, *source.option, *THREE, processes=1))
    computed = _computed(log)
    assert computed["state"].unique().tolist() == THREE[1].split(",")
    assert len(computed) == len(computed.drop_duplicates()) == 3 * computed["chunk"].nunique()
    assert computed["chunk"].nunique() > 25
    return source.newest(), computed


def test_two_processes_write_the_store_of_one(source, whole, log):
    one, by_one = whole
    _finish(_start(source, *source.option, *THREE, processes=2))
    two = source.newest()
    assert two.info.run_id != one.info.run_id
    assert two.info.status == "FINISHED"
    assert same_folders(artifacts(one) / "features", artifacts(two) / "features")
    computed = _computed(log)
    shares = computed.groupby(["state", "process"]).size()
    assert len(shares) == 6
    assert shares.max() - shares.min() <= 1  # everyone has half
    assert not computed.duplicated(["state", "chunk"]).any()
    assert len(computed) == len(by_one)
    assert two.data.tags["mlflow.note.content"] == one.data.tags["mlflow.note.content"]


def test_killed_and_resumed_is_uninterrupted(source, whole, log):
    """SIGKILL in the first state of one process, and in the second of two; then one process ends it."""
    one, by_one = whole
    chunks = by_one["chunk"].nunique()
    chance = random.Random(time.time_ns())
    before = {run.info.run_id for run in source.workplace.runs()}
    options: tuple[str, ...] = (*source.option, *THREE)
    kept: set[tuple[str, str]] = set()
    for number, processes in enumerate((1, 2)):
        state, folder = (("pretrained", "epoch_000"), ("step_000004", "step_000004"))[number]
        log.write_text("")
        process = _start(source, *options, processes=processes)
        target, deadline = chance.randint(3, chunks // 2), time.monotonic() + 120
        while (_computed(log)["state"] == state).sum() < target and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.1))
        for pid in {process.pid, *map(int, _computed(log)["process"])}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate()
        [cut] = [run for run in source.workplace.runs() if run.info.run_id not in before]
        assert cut.info.status == "RUNNING"  # as MLflow knows it
        features = artifacts(cut) / "features"
        seen = FeatureStore.open(features)
        assert seen.states == ["pretrained"][:number]
        assert {path.name for path in features.iterdir() if not path.name.startswith(".")} == {
            "examples.parquet", "tokens.parquet", "manifest.json", *["epoch_000"][:number]
        }  # fmt: skip
        computed = set(_computed(log)[["state", "chunk"]].itertuples(index=False, name=None))
        assert not computed & kept, "computed again"
        marked = {(state, path.name) for path in (features / f".{folder}.done").glob("0*")}
        assert 1 <= len(marked) < chunks
        done = {
            pair for pair in by_one[["state", "chunk"]].itertuples(index=False, name=None) if pair[0] in seen.states
        }
        kept = marked | done
        options = ("--resume_run_id", cut.info.run_id)
    log.write_text("")
    _finish(_start(source, *options, processes=1))
    computed = _computed(log)[["state", "chunk"]].itertuples(index=False, name=None)
    expected = set(by_one[["state", "chunk"]].itertuples(index=False, name=None)) - kept
    assert sorted(computed) == sorted(expected)
    cut = source.workplace.client().get_run(cut.info.run_id)
    assert cut.info.status == "FINISHED"
    assert same_folders(artifacts(one) / "features", artifacts(cut) / "features")
    assert cut.data.tags["mlflow.note.content"] == one.data.tags["mlflow.note.content"]
    assert all(len(values) == 1 for values in source.workplace.points(cut.info.run_id).values())


# ---- bad input ----

BEFORE_A_RUN = {
    "unknown run": (["--source_run_id", "1234"], "1234"),
    "run of another stage": (
        ["--source_run_id", "{extracted}"],
        "is of stage extract; accepted are runs of fine-tune or prune",
    ),
    "run that is still going": (["--source_run_id", "{running}"], "run {running} is still going"),
    "runs over several seeds": (
        ["--source_run_id", "{parent}"],
        "run {parent} holds several runs; give one of its children: {child} (s1)",
    ),
    "no source": ([], "give --source_run_id <fine-tune run> or --model_name_or_path <model>, one of the two"),
    "two sources": (["--source_run_id", "{source}", "--model_name_or_path", "minilm"], "one of the two"),
    "other texts": (
        ["--source_run_id", "{source}", "--dataset", "imdb"],
        "--dataset 'imdb': the texts are those of run {source}, with '{file}'",
    ),
    "other length": (
        ["--source_run_id", "{source}", "--max_length", "64"],
        "--max_length 64: the texts are those of run {source}, with 128",
    ),
    "another tokenizer": (["--source_run_id", "{source}", "--tokenizer_name", "minilm"], "--tokenizer_name"),
    "unknown rows": (
        ["--source_run_id", "{source}", "--rows", "sometimes"],
        "--rows 'sometimes': accepted are first, mean, tokens",
    ),
    "no layers": (
        ["--source_run_id", "{source}", "--layers", "some"],
        "--layers 'some': accepted are 'all', or numbers",
    ),
    "unknown part": (
        ["--source_run_id", "{source}", "--parts", "dev"],
        "--parts 'dev': accepted are train, validation, probe, test",
    ),
    "finished run": (["--resume_run_id", "{extracted}"], "run {extracted} has already finished"),
    "another option on resuming": (
        ["--resume_run_id", "{extracted}", "--layers", "0"],
        "--layers '0': run {extracted} was started with 'all'",
    ),
}
IN_A_RUN = {
    "unknown state": (
        ["--source_run_id", "{source}", "--states", "pretrained,epoch_009"],
        "--states 'pretrained,epoch_009': run {source} has no state 'epoch_009'; it has: ",
    ),
    "unknown layer": (
        ["--source_run_id", "{source}", "--layers", "9"],
        "--layers '9': the model has no layer 9; accepted are 0 (embeddings) to 2",
    ),
    "unknown model": (
        ["--model_name_or_path", "no-such-model"],
        "--model_name_or_path 'no-such-model' is neither a model folder",
    ),
}


@pytest.fixture(scope="module")
def places(source, extracted) -> dict[str, str]:
    """Runs to give, good and bad."""
    client = source.workplace.client()
    experiment = source.run.info.experiment_id

    def made(name: str, **tags: str) -> str:
        return client.create_run(experiment, run_name=name, tags={"bertdyn.stage": "fine-tune"} | tags).info.run_id

    running, parent = made("running"), made("parent")
    child = made("s1", **{"mlflow.parentRunId": parent})
    for run_id in (parent, child):
        client.set_terminated(run_id)
    return {
        "running": running,
        "parent": parent,
        "child": child,
        "source": source.run.info.run_id,
        "extracted": extracted[0].info.run_id,
        "file": str(source.file),
    }


def _refused(source: Source, command, *argv: str) -> tuple[str, list[str]]:
    """The one line, and how the runs ended that were made."""
    before = {run.info.run_id for run in source.workplace.runs()}
    status, err = command(*argv)
    assert status == 2, err
    assert "Traceback" not in err
    [line] = [line for line in err.splitlines() if line.startswith("error: ")]
    return line, [run.info.status for run in source.workplace.runs() if run.info.run_id not in before]


@pytest.mark.parametrize("case", [*BEFORE_A_RUN, *IN_A_RUN])
def test_one_line_and_status_2(source, places, command, case):
    argv, said = (BEFORE_A_RUN | IN_A_RUN)[case]
    line, ended = _refused(source, command, *(argument.format(**places) for argument in argv))
    assert said.format(**places) in line
    assert ended == ([] if case in BEFORE_A_RUN else ["FAILED"])
    if case == "unknown state":
        kept = [path.name for path in (artifacts(source.run) / "checkpoints").iterdir() if path.is_dir()]
        assert len(kept) == 8
        assert all(f" {name}," in line for name in ["pretrained", "best", "last", *kept])


def test_texts_that_changed_since_the_fine_tuning(source, command):
    kept = source.file.read_bytes()
    generate(600, 1, "train")[["text", "label"]].to_csv(source.file, index=False)
    try:
        line, ended = _refused(source, command, *source.option)
    finally:
        source.file.write_bytes(kept)
    assert f"the data of run {source.run.info.run_id} changed since it was made: {source.file}" in line
    assert ended == ["FAILED"]


def test_no_room_for_the_features(source, command, monkeypatch):
    usage = shutil.disk_usage(source.workplace.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    line, ended = _refused(source, command, *source.option)
    assert re.search(r"the features take 0.00 GB, and .*features has 0.00 GB left: take fewer --layers, --states", line)
    assert ended == ["FAILED"]
    assert not (artifacts(source.newest()) / "features").exists()


if __name__ == "__main__":
    main()
