"""Files of runs whose artifacts are elsewhere."""

from pathlib import Path

import pytest

from bertdyn.tracking.locations import run_folder
from explorer import artifacts
from explorer.runs import load_run
from tests.end_to_end.conftest import make_workplace


@pytest.fixture
def place(tmp_path, here, monkeypatch):
    place = make_workplace(tmp_path)
    here(place.uri, tmp_path)
    for module in ("explorer.artifacts", "bertdyn.tracking.artifacts"):
        monkeypatch.setattr(f"{module}.artifact_folder", lambda run: None)
    return place


def begin(place, **files: str) -> str:
    client = place.client()
    run = client.create_run(client.get_experiment_by_name("bertdyn").experiment_id, tags={"bertdyn.stage": "extract"})
    write(run, **files)
    return run.info.run_id


def write(run, **files: str) -> None:
    for name, content in files.items():
        path = Path(run.info.artifact_uri.removeprefix("file://"), *name.split("__")).with_suffix(".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def test_a_running_run_is_read_anew_and_a_finished_one_once(place):
    run_id = begin(place, note="first")
    client = place.client()
    assert artifacts.fetch(load_run(run_id), "note.txt").read_text() == "first"
    write(client.get_run(run_id), note="second")
    assert artifacts.fetch(load_run(run_id), "note.txt").read_text() == "second"
    client.set_terminated(run_id)
    write(client.get_run(run_id), note="third")
    found = artifacts.fetch(load_run(run_id), "note.txt")
    assert found.read_text() == "third"
    write(client.get_run(run_id), note="never read")
    assert artifacts.fetch(load_run(run_id), "note.txt") == found
    assert found.read_text() == "third"


def test_one_file_of_a_folder_is_no_folder_for_the_steps(place):
    """A step that asks for the whole folder gets the whole folder, whatever the explorer has looked at."""
    run_id = begin(place, features__manifest="m", features__tokens="t")
    place.client().set_terminated(run_id)
    artifacts.fetch(load_run(run_id), "features/manifest.txt")
    assert {path.name for path in run_folder(run_id, "features").iterdir()} == {"manifest.txt", "tokens.txt"}


def test_what_is_not_there_is_none(place):
    run = load_run(begin(place, note="here"))
    assert artifacts.table(run, "dynamics") is None
    assert artifacts.text(run, "summary.md") is None
    assert artifacts.record(run, "config.json") == {}
    assert artifacts.open_store(run) is None
    with pytest.raises(FileNotFoundError):
        artifacts.fetch(run, "plan.json")
