"""The tracker without MLflow, and the points file."""

import json
import math
import subprocess
import sys

import numpy
import pandas
import pytest
import torch

from bertdyn.tracking.points import Points
from bertdyn.tracking.provenance import environment, git_state
from bertdyn.tracking.tracker import Tracker


def test_points_are_written_once_per_key_and_step(tmp_path):
    tracker = Tracker(tmp_path)
    tracker.log_metrics({"train/loss": torch.tensor(0.5), "eval/f1": numpy.float32(0.25)}, step=1)
    tracker.log_metrics({"train/loss": 9.0}, step=1)
    Tracker(tmp_path).log_metrics({"train/loss": 8.0, "norm(layer)": math.inf}, step=1)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    found = {(line["key"], line["step"]): line["value"] for line in lines}
    assert len(lines) == 3
    assert found == {("train/loss", 1): 0.5, ("eval/f1", 1): 0.25, ("norm_layer_", 1): None}


def test_half_a_line_of_a_killed_process_is_dropped(tmp_path):
    points = Points(tmp_path / "metrics.jsonl")
    points.add({"a": 1.0, "b": math.nan}, 0)
    with points.path.open("a") as file:
        file.write('{"key": "a", "val')
    again = Points(points.path)
    again.add({"a": 2.0}, 1)
    assert [(p.key, p.step) for p in Points(points.path)] == [("a", 0), ("b", 0), ("a", 1)]
    assert math.isnan(list(again)[1].value)


def test_everything_is_in_the_folder(tmp_path):
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().plot([1, 2])
    table = pandas.DataFrame({"layer": [0, 1], "value": [0.5, 0.25]})
    with Tracker(tmp_path) as tracker:
        tracker.log_config({"seed": 1, "folder": tmp_path})
        tracker.log_table(table, "norms")
        tracker.log_figure(figure, "norms")
        tracker.log_frame(figure, "film", 3)
        tracker.log_dataset(table, "toy", "synthetic", "abc", "train", "value")
        tracker.note("# done")
        with tracker.child("seed-1", {"x": "y"}) as child:
            child.log_metrics({"a": 1}, 0)
    assert json.loads((tmp_path / "config.json").read_text()) == {"folder": str(tmp_path), "seed": 1}
    pandas.testing.assert_frame_equal(pandas.read_parquet(tmp_path / "norms.parquet"), table)
    assert (tmp_path / "figures" / "norms.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "figures" / "film" / "003.png").read_bytes().startswith(b"\x89PNG")
    assert tracker.fetch("children/seed-1/metrics.jsonl").exists()
    assert json.loads((tmp_path / "datasets.json").read_text())[0]["rows"] == 2
    assert not list(tmp_path.rglob("*.tmp"))
    with pytest.raises(FileNotFoundError, match="nothing"):
        tracker.fetch("nothing")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    tracker = Tracker(tmp_path)
    tracker.log_table(pandas.DataFrame({"a": [1]}), "t")
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever pyarrow raises
        tracker.log_table(pandas.DataFrame({"a": [object()]}), "t")
    assert pandas.read_parquet(tmp_path / "t.parquet")["a"].tolist() == [1]
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_tracker_does_not_import_mlflow():
    script = "import sys, bertdyn.tracking.tracker, bertdyn.tracking.locations as l; l.resolve_model('a/b')\n"
    script += "assert 'mlflow' not in sys.modules and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_git_state_tells_dirt(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    assert git_state(tmp_path) is None
    git("init")
    (tmp_path / "a.py").write_text("one\n")
    before_the_first_commit = git_state(tmp_path)
    assert before_the_first_commit is not None
    assert before_the_first_commit.commit is None
    assert before_the_first_commit.dirty
    git("add", ".")
    git("commit", "-m", "x")
    clean = git_state(tmp_path)
    assert clean is not None
    assert (clean.dirty, clean.diff) == (False, "")
    (tmp_path / "a.py").write_text("two\n")
    (tmp_path / "new.py").write_text("")
    dirty = git_state(tmp_path)
    assert dirty is not None
    assert dirty.dirty
    assert "-one\n+two" in dirty.diff
    assert "untracked: new.py" in dirty.diff
    assert environment(dirty)["git"] == {"commit": clean.commit, "dirty": True}
