"""Sparse dictionaries as a function, without MLflow, on stores made by hand: what was planted is found, no more."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch

from bertdyn.errors import InputError
from bertdyn.features.aligned import AlignedRows
from bertdyn.features.store import FeatureStore
from bertdyn.sae.dictionary import Dictionary, decode, encode
from bertdyn.sae.export import load_dictionary, load_metadata
from bertdyn.sae.metrics import basis_of, measure
from bertdyn.steps import sae as step
from bertdyn.steps import sae_pages, sae_report, sae_training
from bertdyn.steps.config import ExtractConfig, SaeConfig
from bertdyn.steps.extract_runs import ExtractRun
from bertdyn.steps.sae import SaeResult, sae
from bertdyn.tracking.tracker import Tracker
from tests.features.test_aligned import write_store

pytestmark = pytest.mark.slow  # trainings; `make check` stays short

WIDTH = 12
ALPHABET = "abcdefghijklmnopqrstuvwxyz"
TEXTS = [
    (part, [f"[{ALPHABET[number % 5 : number % 5 + 6 + number % 8]}]"])
    for part, count in (("train", 150), ("test", 6), ("probe", 80))
    for number in range(count)
]
LABELS = np.random.default_rng(5).integers(2, size=len(TEXTS))
BASIS = np.linalg.qr(np.random.default_rng(1).normal(size=(WIDTH, WIDTH)))[0]
SCALE = np.linspace(0.5, 2, WIDTH)
"""By dimension: directions in standardised space are not those of the rows."""
COMMON, BORN, DIED, OF_LABEL = range(6), 6, 7, 8
FEW = {"width": 16, "k": 2, "num_train_epochs": 2, "per_device_train_batch_size": 64, "page_latents": 4}
"""Options of dictionaries so small that they take no time."""


def owners(texts=TEXTS) -> np.ndarray:
    """[tokens]: number of the text of each."""
    return np.repeat(np.arange(len(texts)), [len(windows[0]) for _, windows in texts])


def planted_codes(born: bool = False, died: bool = False, of_label: bool = False, seed: int = 0) -> np.ndarray:
    """[tokens, directions]: in each token one direction is on; where those planted are missing, a common one is."""
    generator, owner = np.random.default_rng(seed), owners()
    on, chance = generator.integers(len(COMMON), size=len(owner)), generator.random(len(owner))
    on = np.where(born & (chance < 0.12), BORN, on)
    on = np.where(died & (chance > 0.88), DIED, on)
    on = np.where(of_label & (0.12 <= chance) & (chance < 0.5) & (LABELS[owner] == 1), OF_LABEL, on)
    codes = np.zeros((len(owner), WIDTH))
    codes[np.arange(len(owner)), on] = generator.uniform(1, 2, size=len(owner))
    return codes


def rows_of(codes: np.ndarray, seed: int = 0) -> np.ndarray:
    """Codes of planted directions as rows: with a large mean, dimensions of unequal spread, and some noise."""
    noise = 0.01 * np.random.default_rng(seed).normal(size=codes.shape)
    return ((codes @ BASIS + noise + 3) * SCALE).astype(np.float32)


def make_run(folder: Path, states: Mapping[str, Mapping[int, np.ndarray]], texts=TEXTS, **options) -> ExtractRun:
    labels = options.pop("labels", LABELS[: len(texts)].tolist())
    store = write_store(folder / "store", states, texts, labels=labels, **options)
    table = pd.read_parquet(store.folder / "tokens.parquet")  # what a page needs, of a character that is a token
    where = {"segment": 0, "word_id": table["position"], "char_start": table["position"]}
    table.assign(**where, char_end=table["position"] + 1).to_parquet(store.folder / "tokens.parquet")
    config = ExtractConfig(model_name_or_path="model-a1")
    return ExtractRun("a1", "synthetic-a1", config, FeatureStore.open(store.folder), list(states))


def run_sae(folder: Path, run: ExtractRun, **options) -> SaeResult:
    options = {"source_run_id": run.run_id, "random_init": False} | FEW | options
    return sae(SaeConfig(**options), Tracker(folder), run)


def dictionary_of(folder: Path, comparison: str, state: str, layer: int = 1, seed: int = 0, sparsity: str = "2") -> Dictionary:
    return load_dictionary(folder / f"dictionaries/{comparison}/{state}/layer_{layer:02d}/seed_{seed}_{sparsity}")


def same_dictionaries(one: Dictionary, other: Dictionary) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one[2:], other[2:], strict=True))


def files_of(folder: Path) -> dict[str, bytes]:
    """All that a run wrote, but for its points, which have times."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "metrics.jsonl"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture(autouse=True, scope="module")
def twin(tmp_path_factory):
    """In the place of a random encoder, which needs a model: rows that know nothing."""

    def make(run, *, parts, rows, layers, seed) -> FeatureStore:
        texts = [text for text in TEXTS if text[0] in parts]
        noise = np.random.default_rng([9, seed])
        shape = (len(owners(texts)), WIDTH)
        states = {"random_init": {layer: noise.normal(size=shape).astype(np.float32) for layer in layers}}
        folder = tmp_path_factory.mktemp("twin")
        labels = LABELS[[text[0] in parts for text in TEXTS]].tolist()
        return write_store(folder / "store", states, texts, kinds=tuple(rows), labels=labels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "random_twin", make)
        yield


@pytest.fixture
def no_figures(monkeypatch):
    """Half of the time of so small a run."""
    monkeypatch.setattr(sae_report, "_figures", lambda found: iter(()))


@pytest.fixture
def shown_pages(monkeypatch) -> list:
    """What the pages are made of."""
    pages, make = [], sae_pages.feature_page
    monkeypatch.setattr(sae_pages, "feature_page", lambda page: (pages.append(page), make(page))[1])
    return pages


class Done(NamedTuple):
    run: ExtractRun
    result: SaeResult
    folder: Path

    def table(self, name: str, **values) -> pd.DataFrame:
        table = pd.read_parquet(self.folder / f"{name}.parquet")
        for column, value in values.items():
            table = table[table[column] == value]
        return table.reset_index(drop=True)


@pytest.fixture(scope="module")
def planted(tmp_path_factory, twin) -> Done:
    """One direction vanishes, one appears, one appears in the texts of a class; everything else stays."""
    folder = tmp_path_factory.mktemp("planted")
    states = {
        "pretrained": {1: rows_of(planted_codes(0, died=True)), 2: rows_of(planted_codes(2, died=True))},
        "best": {1: rows_of(planted_codes(1, born=True, of_label=True)), 2: rows_of(planted_codes(3, born=True))},
    }
    run = make_run(folder, states)
    options = {"num_train_epochs": 8, "random_init": True, "frontier": "1,4", "learning_rate": 0.01}
    return Done(run, run_sae(folder / "run", run, **options), folder / "run")


def nearest(dictionary: Dictionary, direction: int) -> tuple[int, float]:
    """The latent whose direction is nearest to a planted one in standardised space, and the cosine."""
    true = torch.from_numpy(BASIS[direction] * SCALE).float() / dictionary.scale
    cosines = dictionary.directions @ (true / true.norm())
    return int(cosines.argmax()), float(cosines.max())


def test_what_was_planted_is_found(planted):
    for layer in (1, 2):
        for seed in (0, 1):
            shared = dictionary_of(planted.folder, "shared", "best", layer, seed)
            fates = planted.table("fates", comparison="shared", layer=layer, seed=seed).set_index("latent")["fate"]
            for direction, fate in ((BORN, "born"), (DIED, "died"), (0, "kept")):
                latent, cosine = nearest(shared, direction)
                assert cosine > 0.9
                assert fates[latent] == fate
