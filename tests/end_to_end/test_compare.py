"""Comparison by command, of runs that were fine-tuned and extracted by command: states, seeds, models, bad input."""

import json
import subprocess
import sys
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pytest
from mlflow.entities import Run

from entrypoints import compare, extract
from tests.end_to_end.conftest import ROOT, Workplace, artifacts, make_workplace

DATA = ("--max_train_samples", "240", "--max_validation_samples", "60", "--max_probe_samples", "40",
        "--max_test_samples", "60")  # fmt: skip
TRAINING = (
    "--num_train_epochs",
    "2",
    "--per_device_train_batch_size",
    "16",
    "--learning_rate",
    "1e-3",
    "--seeds",
    "0,1",
)
LABELS = ["synthetic-bert-s0", "synthetic-bert-s1"]
BOTH = " and ".join(LABELS)


@dataclass
class Source:
    """One encoder, fine-tuned with two seeds, and the features of every epoch of both."""

    workplace: Workplace
    model: str
    tuned: list[Run]
    extracted: list[Run]
    places: dict[str, str] = field(default_factory=dict)

    @property
    def ids(self) -> list[str]:
        return [run.info.run_id for run in self.extracted]

    def newest(self) -> Run:
        return self.workplace.runs()[0]

    def compare(self, *options: str) -> tuple[Run, str]:
        out = self.workplace.run(*options, module="entrypoints.compare")
        return self.newest(), out


@pytest.fixture(scope="module")
def source(tmp_path_factory, checkpoints) -> Source:
    workplace = make_workplace(tmp_path_factory.mktemp("compare"))
    model = str(checkpoints["bert"])
    workplace.run("--model_name_or_path", model, *DATA, *TRAINING)
    tuned = [run for run in reversed(workplace.runs()) if "mlflow.parentRunId" in run.data.tags]
    extracted = []
    for run in tuned:
        options = ("--source_run_id", run.info.run_id, "--states", "all", "--parts", "probe")
        workplace.run(*options, module="entrypoints.extract")
        extracted.append(workplace.runs()[0])
    return Source(workplace, model, tuned, extracted)


@pytest.fixture
def command(source, run_here):
    return lambda *argv, of=compare: run_here(source.workplace, of, *argv)


def tables(run: Run) -> tuple[pd.DataFrame, pd.DataFrame]:
    return tuple(pd.read_parquet(artifacts(run) / f"{name}.parquet") for name in ("similarity", "geometry"))


def values(table: pd.DataFrame, measure: str, rows: str = "content") -> pd.Series:
    """Layer → value, of one pair of states."""
    chosen = table[(table["measure"] == measure) & (table["rows"] == rows)].set_index("layer")["value"]
    assert chosen.index.is_unique
    return chosen


@pytest.fixture(scope="module")
def compared(source):
    """The states of one run, by `python -m`."""
    return source.compare("--source_run_id", source.ids[0])


def test_the_run_in_mlflow(source, compared):
    run, out = compared
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "compare-synthetic-bert-s0"
    assert f"run id   {run.info.run_id}" in out
    assert f"-e probe --env-manager local -P source_run_id={source.ids[0]} -P compare_run_id={run.info.run_id}" in out
    tags = run.data.tags
    assert tags["bertdyn.stage"] == "compare"
    assert tags["bertdyn.source_run_id"] == source.ids[0]
    assert tags["bertdyn.dataset"] == "synthetic"
    assert tags["bertdyn.model"] == source.model
    note = tags["mlflow.note.content"]
    assert note.startswith("## `synthetic-bert-s0`: pretrained → epoch_002, content tokens")
    assert note == (artifacts(run) / "summary.md").read_text()
    assert note in out
    names = {str(path.relative_to(artifacts(run))) for path in artifacts(run).rglob("*") if path.is_file()}
    files = {"similarity", "geometry", "cosine_histogram", "dimensions", "pca"}
    figures = {"similarity_by_layer", "similarity_heatmaps", "geometry_heatmaps", "geometry_by_layer", "class_geometry",
               "cosine_distributions", "norms", "pca", "token_cosines"}  # fmt: skip
    assert {"config.json", "environment.json", *(f"{name}.parquet" for name in files)} <= names
    assert {name for name in names if name.startswith("figures/")} == {f"figures/{name}.png" for name in figures}
    assert all(f"`{name}`" in note for name in files | figures)
    similarity, _ = tables(run)
    points = source.workplace.points(run.info.run_id)
    keys = {f"similarity/{m}/layer_0{n}" for m in ("cosine", "cosine_centered", "cka", "knn_overlap") for n in range(4)}
    assert set(points) == {(key, step) for key in keys for step in (1, 2)}
    for step, state in ((1, "epoch_001"), (2, "epoch_002")):
        for layer, value in values(similarity[similarity["state_b"] == state], "cosine").items():
            assert points[f"similarity/cosine/layer_0{layer}", step] == [pytest.approx(value)]


def test_fine_tuning_moves_what_it_says(compared):
    """Embeddings least, the last layer most, and no measure mistakes a state for itself."""
    similarity, geometry = tables(compared[0])
    assert set(similarity["kind"]) == {"states"}
    assert set(similarity["state_a"]) == {"pretrained"}
    assert set(similarity["layer"]) == set(geometry["layer"]) == {0, 1, 2, 3}
    assert set(geometry["state"]) == {"pretrained", "epoch_001", "epoch_002"}
    pair = similarity[similarity["state_b"] == "epoch_002"]
    cosine, centred, cka = (values(pair, measure) for measure in ("cosine", "cosine_centered", "cka"))
    assert cosine[0] > 0.9
    assert cosine[3] < cosine[0]
    assert cka[3] < cka[0] <= 1
    assert centred[3] < centred[0]
    assert (values(pair, "cosine_mismatched") < cosine).all()
    firsts = {
        measure: values(pair, measure, "first") for measure in ("cka", "knn_overlap", "cosine_centered", "procrustes")
    }
    assert all(np.isnan(of[0]) and not np.isnan(of[3]) for of in firsts.values())  # the same first token everywhere


def test_mlflow_run_gives_the_same_tables(source, compared):
    first, _ = compared
    done = subprocess.run(
        [sys.executable, "-m", "mlflow", "run", ".", "-e", "compare", "--env-manager", "local",
         "-P", f"source_run_id={source.ids[0]}"],
        cwd=ROOT,
        env=source.workplace.environment,
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = source.newest()
    assert run.info.run_id != first.info.run_id
    assert (run.info.status, run.info.run_name) == ("FINISHED", first.info.run_name)
    for one, other in zip(tables(run), tables(first), strict=True):
        pd.testing.assert_frame_equal(one, other, rtol=1e-12)
    assert run.data.tags["mlflow.note.content"] == first.data.tags["mlflow.note.content"]
    configs = [json.loads((artifacts(r) / "config.json").read_text()) for r in (first, run)]
    assert configs[0] == configs[1]


def test_two_seeds_are_the_baseline(source, compared):
    """How far fine-tunings that differ by chance are apart; before training there is no chance in the encoder."""
    run, out = source.compare("--run_ids", ",".join(source.ids))
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "compare-2-runs"
    assert run.data.tags["bertdyn.source_run_id"] == ",".join(source.ids)
    similarity, geometry = tables(run)
    assert set(similarity["kind"]) == {"states", "reseeded"}
    assert set(geometry["run"]) == set(similarity.query("kind == 'states'")["run"]) == set(LABELS)
    reseeded = similarity[similarity["kind"] == "reseeded"]
    assert set(reseeded["run"]) == {BOTH}
    assert set(reseeded["state_a"]) == set(reseeded["state_b"]) == {"epoch_002"}
    cosine = values(reseeded, "cosine")
    assert cosine[3] < cosine[0] < 1
    alone, _ = tables(compared[0])
    mine = similarity[(similarity["run"] == LABELS[0]) & (similarity["kind"] == "states")].reset_index(drop=True)
    pd.testing.assert_frame_equal(mine, alone, rtol=1e-12)
    drawn = {path.stem for path in (artifacts(run) / "figures").iterdir()}
    assert {"similarity_over_runs", *(f"similarity_by_layer_{label}" for label in LABELS)} <= drawn
    assert any(name.startswith("between_") for name in drawn)
    note = run.data.tags["mlflow.note.content"]
    assert f"| {BOTH}: epoch_002 → epoch_002 (two seeds) | " + " | ".join(f"{v:.3f}" for v in cosine) + " |" in note
    assert note in out


def test_two_seeds_before_training_are_one_encoder(source, command):
    status, err = command("--run_ids", ",".join(source.ids), "--states", "pretrained", "--layers", "0,3")
    assert status == 0, err
    similarity, _ = tables(source.newest())
    assert set(similarity["kind"]) == {"reseeded"}
    assert set(similarity["layer"]) == {0, 3}
    for measure, same in (("cosine", 1), ("cosine_centered", 1), ("cka", 1), ("procrustes", 0), ("knn_overlap", 1)):
        np.testing.assert_allclose(values(similarity, measure), same, atol=1e-10)
    assert (values(similarity, "cosine_mismatched") < 0.999).all()


def test_two_models_on_the_same_texts(source, compared, command):
    """The encoder before and after fine-tuning, as any two models: the numbers are those of two states of one run."""
    after, models = str(artifacts(source.tuned[0]) / "checkpoints/epoch_002"), []
    for model in (source.model, after):
        status, err = command("--model_name_or_path", model, *DATA, "--parts", "probe", of=extract)
        assert status == 0, err
        models.append(source.newest().info.run_id)
    status, err = command("--run_ids", ",".join(models), "--between_runs", "true")
    assert status == 0, err
    run = source.newest()
    assert run.data.tags["bertdyn.model"] == f"{source.model},{after}"
    similarity, geometry = tables(run)
    assert set(similarity["kind"]) == {"models"}
    assert set(similarity["run"]) == {"synthetic-bert and synthetic-epoch_002"}
    assert set(similarity["state_a"]) == set(similarity["state_b"]) == set(geometry["state"]) == {"model"}
    states, _ = tables(compared[0])
    columns = ["layer", "rows", "measure", "value", "low", "high", "num_rows", "num_examples", "interval"]
    expected = states.loc[states["state_b"] == "epoch_002", columns].sort_values(columns[:3]).reset_index(drop=True)
    found = similarity[columns].sort_values(columns[:3]).reset_index(drop=True)
    pd.testing.assert_frame_equal(found, expected, rtol=1e-9, atol=1e-9)


# ---- bad input ----

ONE = ("--source_run_id", "{one}")
BEFORE_A_RUN = {
    "a fine-tune run": (
        ["--source_run_id", "{tuned}"],
        "--source_run_id: run {tuned} is of stage fine-tune; accepted are runs of extract",
    ),
    "one of several": (
        ["--run_ids", "{one},{tuned}"],
        "--run_ids: run {tuned} is of stage fine-tune; accepted are runs of extract",
    ),
    "unknown run": (["--source_run_id", "1234"], "1234"),
    "run that is still going": (["--source_run_id", "{running}"], "run {running} is still going"),
    "no source": ([], "give --source_run_id <extract run> or --run_ids <run>,<run>, one of the two"),
    "two sources": ([*ONE, "--run_ids", "{one},{other}"], "one of the two"),
    "one run only": (["--run_ids", "{one}"], "--run_ids '{one}': accepted are two or more runs"),
    "unknown state": (
        [*ONE, "--states", "best,epoch_009"],
        "--states 'best,epoch_009': run {one} has no state 'best'; it has pretrained, epoch_001, epoch_002",
    ),
    "unknown part": ([*ONE, "--part", "dev"], "--part 'dev': accepted are train, validation, probe, test"),
    "no layers": ([*ONE, "--layers", "some"], "--layers 'some': accepted are 'all', or numbers"),
    "too few texts": ([*ONE, "--max_examples", "3"], "--max_examples 3: accepted are values from 4"),
}
IN_A_RUN = {
    "layer outside the model": (
        [*ONE, "--layers", "9"],
        "--layers '9': the model has no layer 9; accepted are 0 (embeddings) to 3",
    ),
    "unknown reference": (
        [*ONE, "--reference", "nowhere"],
        "--reference 'nowhere': accepted are previous, pretrained, epoch_001, epoch_002",
    ),
    "part that was not extracted": ([*ONE, "--part", "train"], "0 texts of the part 'train'; its parts are probe"),
    "no such text": (
        [*ONE, "--layers", "0", "--example_id", "nobody"],
        "--example_id 'nobody': run {one} has no such text",
    ),
    "other texts": (
        ["--run_ids", "{one},{others}", "--layers", "0", "--between_runs", "true"],
        "hold different examples: nothing of them can be compared row by row",
    ),
}


@pytest.fixture
def places(source, command) -> dict[str, str]:
    """Runs to give, good and bad; made once."""
    known = source.places
    if not known:
        fewer = ("--max_probe_samples", "30", "--parts", "probe", "--rows", "mean")
        status, err = command("--model_name_or_path", source.model, *DATA, *fewer, of=extract)
        assert status == 0, err
        others = source.newest().info.run_id
        experiment = source.extracted[0].info.experiment_id
        running = source.workplace.client().create_run(experiment, tags={"bertdyn.stage": "extract"})
        known |= {"one": source.ids[0], "other": source.ids[1], "tuned": source.tuned[0].info.run_id,
                  "running": running.info.run_id, "others": others}  # fmt: skip
    return known


def refused(source: Source, command, *argv: str) -> tuple[str, list[str]]:
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
    line, ended = refused(source, command, *(argument.format(**places) for argument in argv))
    assert said.format(**places) in line
    assert ended == ([] if case in BEFORE_A_RUN else ["FAILED"])


def test_other_texts_are_said_where_they_need_not_be_the_same(source, places, command):
    status, err = command("--run_ids", "{one},{others}".format(**places), "--layers", "0")
    assert status == 0, err
    run = source.newest()
    assert set(tables(run)[0]["kind"]) == {"states"}
    assert "### Not compared row by row" in run.data.tags["mlflow.note.content"]
    assert "hold different examples" in run.data.tags["mlflow.note.content"]


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_store_is_said(source, command, damage):
    file = artifacts(source.extracted[1]) / "features/epoch_001/tokens/layer_02.npy"
    content = file.read_bytes()
    try:
        file.write_bytes(content[:-100]) if damage == "cut" else file.unlink()
        line, ended = refused(source, command, "--source_run_id", source.ids[1])
    finally:
        file.write_bytes(content)
    assert "feature store is damaged: " in line
    assert "epoch_001/tokens/layer_02.npy" in line
    assert ended == []
