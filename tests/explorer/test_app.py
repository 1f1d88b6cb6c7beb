"""The frame around the pages: which run is picked, and what is said when there is none."""

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from explorer.config import ASKED
from explorer.page import as_told
from tests.end_to_end.conftest import make_workplace

APP = Path(__file__).parents[2] / "explorer" / "app.py"


def start(**query: str) -> AppTest:
    app = AppTest.from_file(APP, default_timeout=120)
    for name, value in query.items():
        app.query_params[name] = value
    return app.run()


def test_the_newest_pipeline_is_shown_first(store):
    app = start()
    assert not app.exception
    assert app.selectbox(key="run").value == store.pipeline.info.run_id
    assert app.query_params["run_id"] == store.pipeline.info.run_id
    assert app.title[0].value == "Training dynamics"
    assert app.subheader[0].value == "What moved, by layer and epoch"


def test_the_run_that_is_asked_for(store, monkeypatch):
    assert start(run_id=store.step("sae")).selectbox(key="run").value == store.step("sae")
    monkeypatch.setenv(ASKED, store.step("probe"))
    assert start().selectbox(key="run").value == store.step("probe")
    assert start(run_id=store.step("sae")).selectbox(key="run").value == store.step("sae")


def test_runs_of_one_stage(store):
    app = start()
    app.selectbox(key="stage").set_value("sae").run()
    assert not app.exception
    assert app.selectbox(key="run").value == store.step("sae")
    assert all(option.startswith("sae: ") for option in app.selectbox(key="run").options)


def test_a_trial_can_be_asked_for_though_it_is_in_no_list(store):
    [trial, *_] = store.workplace.runs(filter_string="tags.bertdyn.stage = 'sweep-pruning-trial'")
    app = start(run_id=trial.info.run_id)
    assert not app.exception
    assert app.selectbox(key="run").value == trial.info.run_id
    assert app.subheader[0].value == "What moved, by layer and epoch"


def test_an_unknown_run_is_an_error_of_one_line(store):
    app = start(run_id="0" * 32)
    assert not app.exception
    assert f"run '{'0' * 32}' does not exist" in app.error[0].value


@pytest.fixture
def empty(tmp_path, here):
    place = make_workplace(tmp_path)
    here(place.uri, tmp_path)
    return place


def test_a_store_without_runs_says_how_to_begin(empty):
    app = start()
    assert not app.exception
    assert app.info[0].value.startswith("There is no run yet.")
    assert app.code[0].value == "mlflow run . --env-manager local"


def test_a_store_that_does_not_answer(tmp_path, here):
    here("http://127.0.0.1:9", tmp_path)
    app = start()
    assert not app.exception
    assert "http://127.0.0.1:9 does not answer" in app.error[0].value


def test_links_of_the_mlflow_ui_are_words_and_pictures_stay_away():
    told = as_told("seed 0 [abc](#/experiments/1/runs/abc), [out](http://a.b/#/c) ![x](http://spy/y.png)")
    assert told == r"seed 0 `abc`, [out](http://a.b/#/c) !\[x](http://spy/y.png)"
