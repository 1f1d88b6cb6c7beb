"""Fixtures that more than one part uses."""

import os
from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from transformers.utils import logging as transformers_logging

from tests.families import FAMILIES, make_checkpoint

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """Family → folder of a tiny random checkpoint."""
    root = tmp_path_factory.mktemp("checkpoints")
    folders = {family: root / family for family in FAMILIES}
    for family, folder in folders.items():
        folder.mkdir()
        make_checkpoint(family, folder)
    return folders


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """No test reads or fills the user's cache."""
    monkeypatch.setenv("BERTDYN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def story(tmp_path_factory):
    """Small runs of every step, for the explorer: see `tests.explorer.story`."""
    from tests.explorer.story import make_story

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        return make_story(tmp_path_factory.mktemp("story"))


@pytest.fixture
def one_thread():
    """As fresh processes have, so that sums are taken in the same order, and outputs are equal bit for bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
