"""The explorer on real runs, in this process."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest
from streamlit.testing.v1 import AppTest

from tests.explorer.story import Story


@pytest.fixture(autouse=True)
def same_main(monkeypatch) -> None:
    """`AppTest` makes its script the process's main module and leaves it so: later tests could spawn no process."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])


@pytest.fixture
def here(monkeypatch) -> Iterator[Callable[[str, Path], None]]:
    """Lets the environment name a store and a cache."""

    def use(uri: str, folder: Path) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.setenv("BERTDYN_CACHE", str(folder / "cache"))
        monkeypatch.delenv("BERTDYN_RUN_ID", raising=False)
        mlflow.set_tracking_uri(uri)  # which an earlier test may have set to another

    yield use
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


@pytest.fixture
def store(here, story) -> Story:
    """The environment names the store of the story."""
    here(story.workplace.uri, story.workplace.folder)
    return story


def _script(name: str, run_id: str) -> None:
    from importlib import import_module

    from explorer.runs import family_of, list_runs, load_run

    import_module(f"explorer.{name}").page(family_of(load_run(run_id), list_runs()))


@pytest.fixture
def open_page(store) -> Callable[..., AppTest]:
    """Opens one page on one run; by default on the pipeline."""

    def open_one(name: str, run_id: str = store.pipeline.info.run_id) -> AppTest:
        page = AppTest.from_function(_script, kwargs={"name": name, "run_id": run_id}, default_timeout=120).run()
        assert not page.exception, page.exception
        assert not page.error, page.error
        return page

    return open_one


def pytest_collection_modifyitems(items):
    """What needs the story makes it first, which takes a minute."""
    for item in items:
        if Path(__file__).parent in item.path.parents and "story" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
