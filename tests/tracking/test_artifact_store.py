"""The artifact store goes its own ways while the tracking database is up."""

import json
import logging
import shutil

import pytest

from bertdyn.errors import InputError
from bertdyn.tracking import locations, logged_models, runs
from bertdyn.tracking.runs import open_run


def _no_space(*arguments):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("case", ["under a file", "refused", "full"])
def test_a_store_that_takes_nothing_is_an_input_error_at_the_start(
    case, artifact_server, client, monkeypatch, tmp_path
):
    where = artifact_server.uri
    if case == "refused":
        artifact_server.status = lambda method, path: 403
    else:
        (tmp_path / "file").write_text("")
        where = str(tmp_path / ("file" if case == "under a file" else "folder") / "artifacts")
        client.create_experiment("local", artifact_location=f"file://{where}")
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "local")
    if case == "full":
        monkeypatch.setattr(runs, "write_json", _no_space)
    with pytest.raises(InputError, match=where):
        open_run("fine-tune")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    assert [run.info.status for run in client.search_runs(experiments)] == ["FAILED"]


def test_the_end_state_does_not_wait_for_a_model(artifact_server, client, tiny_model, monkeypatch, caplog):
    saved, save = [], logged_models._save

    def counted(folder, *others):
        saved.append(folder)
        save(folder, *others)

    monkeypatch.setattr(logged_models, "_save", counted)
    model, tokenizer = tiny_model
    artifact_server.status = lambda method, path: 403 if "models/" in path else 200
    caplog.set_level(logging.WARNING)
    with open_run("fine-tune", patience=3) as tracker:
        assert tracker.log_model(model, tokenizer, "text-classification", {}) is None
    assert client.get_run(tracker.run_id).info.status == "FINISHED"
    message = [record.getMessage() for record in caplog.records if record.name.startswith("bertdyn")][-1]
    assert "did not take the model; " in message
    assert f"--resume_run_id {tracker.run_id} delivers them" in message
    assert len(saved) == 1, "a model is written once, however often the store is asked"
    locations.check_unfinished(tracker.run_id)  # so that it can be resumed, as the message says
    artifact_server.status = lambda method, path: 200
    with open_run("fine-tune", resume_run_id=tracker.run_id) as again:
        uri = again.log_model(model, tokenizer, "text-classification", {})
    assert uri is not None
    assert locations.resolve_model(uri)
    assert not saved[1].parent.exists()
    with pytest.raises(InputError, match="has already finished"):
        locations.check_unfinished(tracker.run_id)


def test_the_end_state_does_not_wait_for_a_file(artifact_server, client, caplog):
    with open_run("fine-tune", patience=1) as tracker:
        artifact_server.status = lambda method, path: 403
        tracker.log_config({"seed": 1})
    assert client.get_run(tracker.run_id).info.status == "FINISHED"
    assert "did not take 1 artifacts; " in caplog.messages[-1]
    locations.check_unfinished(tracker.run_id)
    artifact_server.status = lambda method, path: 200
    with open_run("fine-tune", resume_run_id=tracker.run_id):
        pass
    assert "config.json" in artifact_server.uploads
    with pytest.raises(InputError, match="has already finished"):
        locations.check_unfinished(tracker.run_id)


def _write(tracker, path, text="x"):
    (tracker.folder / path).parent.mkdir(parents=True, exist_ok=True)
    (tracker.folder / path).write_text(text)


def test_uploads_arrive_in_the_order_of_the_last_publication(artifact_server, caplog):
    """What a manifest names is there before it, also when it alone could have been uploaded."""
    with open_run("fine-tune", patience=5) as tracker:
        artifact_server.status = lambda method, path: 403 if "epoch_" in path else 400 if "bad" in path else 200
        artifact_server.uploads.clear()
        for epoch in (1, 2):
            _write(tracker, f"checkpoints/epoch_00{epoch}/weights")
            tracker.publish(f"checkpoints/epoch_00{epoch}")
            _write(tracker, "bad.json")
            tracker.publish("bad.json")
            for name in ("manifest.json", "training_state.safetensors"):
                _write(tracker, f"checkpoints/{name}", f"epoch {epoch}")
                tracker.publish(f"checkpoints/{name}")
        assert artifact_server.uploads == []
        artifact_server.status = lambda method, path: 400 if "bad" in path else 200
    assert artifact_server.uploads == [
        "checkpoints/epoch_001/weights",
        "checkpoints/epoch_002/weights",
        "checkpoints/manifest.json",
        "checkpoints/training_state.safetensors",
    ]
    assert sum("refuses bad.json" in message for message in caplog.messages) == 1


def test_what_cannot_be_read_now_is_not_taken_for_absent(artifact_server):
    with open_run("fine-tune") as tracker:
        tracker.log_metrics({"loss": 1.0}, step=0)
        _write(tracker, "checkpoints/state", "epoch 1")
        tracker.publish("checkpoints/state")
        shutil.rmtree(tracker.folder)
        for unreadable in (("GET", "LIST"), ("GET",)):
            artifact_server.status = lambda method, path, unreadable=unreadable: 403 if method in unreadable else 200
            with pytest.raises(InputError, match="'checkpoints/state' of run .* cannot be read from .*try again"):
                tracker.fetch("checkpoints/state")
        artifact_server.status = lambda method, path: 403 if method == "LIST" else 200
        with pytest.raises(InputError, match="try again"):
            tracker.fetch("checkpoints/nothing")
        artifact_server.status = lambda method, path: 200
        for absent in ("checkpoints/nothing", "nothing", "no/where"):
            with pytest.raises(FileNotFoundError, match="has no artifact"):
                tracker.fetch(absent)
        assert tracker.fetch("checkpoints/state").read_text() == "epoch 1"
        assert tracker.fetch("checkpoints").is_dir()


def test_a_run_whose_metrics_cannot_be_read_now_is_resumed_later(artifact_server):
    with open_run("fine-tune") as tracker, tracker.child("inner") as child:
        for one in (tracker, child):
            one.log_metrics({"loss": 1.0}, step=0)
    for one in (tracker, child):
        shutil.rmtree(one.folder)
    artifact_server.status = lambda method, path: 403 if method != "PUT" else 200
    with pytest.raises(InputError, match=r"'metrics\.jsonl' of run .* cannot be read"):
        open_run("fine-tune", resume_run_id=tracker.run_id)
    asked = []

    def away_for_the_child_at_first(method, path):
        is_childs = method != "PUT" and child.run_id in path
        asked.extend([path] if is_childs else [])
        return 403 if is_childs and len(asked) <= 2 else 200

    artifact_server.status = away_for_the_child_at_first
    with open_run("fine-tune", resume_run_id=tracker.run_id) as again, again.child("inner") as same:
        assert same.run_id == child.run_id
    lines = (again.folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["value"] for line in lines] == [1.0]
