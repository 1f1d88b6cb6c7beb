import json
import os
import subprocess

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader

from bertdyn.errors import InputError
from bertdyn.features.rows import RowDataset, random_batches
from bertdyn.features.store import ArrayInfo, FeatureStore, Manifest, kind_of, same_rows
from bertdyn.features.writing import StateWriter, begin_state, create_store, finish_state, name_state

WIDTH, LAYERS = 4, [0, 1]


def _examples(n=3):
    return pd.DataFrame(
        {
            "example_id": [f"probe-{i:06d}" for i in range(n)],
            "part": "probe",
            "label": [0, 1, 0][:n],
            "text": ["a", "b", "c"][:n],
            "first_row": range(0, 2 * n, 2),
            "n_rows": 2,
        }
    )


def _store(folder, n=3, examples=None, token_ids=None):
    arrays = {
        kind: ArrayInfo("hidden", kind, "float32", LAYERS, [WIDTH, WIDTH]) for kind in ("first", "mean", "tokens")
    }
    arrays["attention"] = ArrayInfo("attention", "tokens", "float16", [1], [0])
    manifest = Manifest(
        arrays,
        depth=1,
        num_examples=n,
        num_tokens=2 * n,
        num_classes=2,
        label_names=["no", "yes"],
        fingerprints={"data": "x"},
    )
    ids = range(2 * n) if token_ids is None else token_ids
    tokens = pd.DataFrame({"row": range(2 * n), "token_id": ids})
    return create_store(folder, manifest, _examples(n) if examples is None else examples, [tokens[:2], tokens[2:]])


def _fill(store, state, value=None, folder=None):
    """Every value, or every row its own number plus a hundred a layer."""
    begin_state(store, folder or state, "weights", resume=False)
    writer = StateWriter(store, folder or state)
    for kind, info in store.manifest.arrays.items():
        rows = 6 if info.rows == "tokens" else 3
        for layer, width in zip(info.layers, info.widths, strict=True):
            shape = (rows, width) if width else (rows,)
            numbers = np.arange(np.prod(shape)).reshape(shape) + 100 * layer
            writer.write(kind, layer, 0, numbers if value is None else np.full(shape, value))
    writer.write_logits(0, np.array([[0.1, 0.9], [2, 1], [0, 1]]))
    writer.sync()
    finish_state(store, state, folder or state, model="weights")


def test_what_is_written_is_read_back_with_numpy_and_pandas_alone(tmp_path):
    _fill(_store(tmp_path / "features"), "best", folder="epoch_002")
    opened = FeatureStore.open(tmp_path / "features")
    assert opened.states == ["best"]
    assert opened.layers("attention") == [1]
    rows = opened.array("mean", "best", 1)
    np.testing.assert_array_equal(rows, np.arange(12).reshape(3, 4) + 100)
    assert isinstance(rows, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        rows[0] = 0
    np.testing.assert_array_equal(np.load(tmp_path / "features/epoch_002/mean/layer_01.npy"), rows)
    examples = pd.read_parquet(tmp_path / "features/examples.parquet")
    assert examples["prediction_best"].tolist() == [1, 0, 1]
    assert pd.read_parquet(tmp_path / "features/tokens.parquet")["row"].tolist() == list(range(6))
    assert opened.logits("best").shape == (3, 2)
    assert not list((tmp_path / "features").glob(".*"))


def test_rows_of_an_example_are_a_view(tmp_path):
    store = _store(tmp_path / "features")
    _fill(store, "best")
    rows = store.example("probe-000001", "tokens", "best", 0)
    np.testing.assert_array_equal(rows, np.arange(24).reshape(6, 4)[2:4])
    assert isinstance(rows.base, np.memmap)
    np.testing.assert_array_equal(store.example("probe-000001", "first", "best", 0), [[4, 5, 6, 7]])
    assert store.example("probe-000002", "attention", "best", 1).tolist() == [104, 105]
    with pytest.raises(InputError, match="no example 'nobody'"):
        store.example("nobody", "tokens", "best", 0)


def test_all_states_and_layers_see_the_same_random_rows(tmp_path):
    store = _store(tmp_path / "features")
    _fill(store, "pretrained")
    _fill(store, "best", 7)
    dataset = RowDataset(store, "tokens", ["pretrained", "best"], [0, 1], rows=np.array([0, 2, 3, 5]))
    batches = list(random_batches(dataset, 3, seed=1))
    assert [tuple(batch.shape) for batch in batches] == [(2, 2, 3, 4), (2, 2, 1, 4)]
    rows = torch.cat(batches, dim=2)
    np.testing.assert_array_equal(rows[0, 1], rows[0, 0] + 100)
    assert (rows[1] == 7).all()
    assert sorted((rows[0, 0, :, 0] // 4).tolist()) == [0, 2, 3, 5]
    again = torch.cat(list(random_batches(dataset, 2, seed=1)), dim=2)
    assert torch.equal(rows, again)  # the order does not depend on the batch size
    orders = {
        tuple(torch.cat(list(random_batches(dataset, 4, seed=1, epoch=e)), 2)[0, 0, :, 0].tolist()) for e in range(9)
    }
    assert len(orders) > 3
    loaded = torch.cat(list(DataLoader(dataset, batch_size=3)))
    assert torch.equal(loaded[:, 0, 0], torch.tensor(store.array("tokens", "pretrained", 0)[[0, 2, 3, 5]]))
    assert torch.equal(dataset[1], loaded[1])


def test_two_states_of_one_epoch_share_their_arrays(tmp_path):
    store = _store(tmp_path / "features")
    _fill(store, "best", folder="epoch_002")
    name_state(store, "last", "epoch_002", "weights")
    opened = FeatureStore.open(tmp_path / "features")
    assert opened.states == ["best", "last"]
    np.testing.assert_array_equal(opened.array("first", "best", 1), opened.array("first", "last", 1))
    assert [path.name for path in (tmp_path / "features").iterdir() if path.is_dir()] == ["epoch_002"]


def test_a_state_that_is_not_finished_never_shows(tmp_path):
    store = _store(tmp_path / "features")
    _fill(store, "epoch_000", 1.0)
    begin_state(store, "epoch_001", "weights", resume=False)
    StateWriter(store, "epoch_001").write("first", 0, 0, np.full((3, 4), 2))
    opened = FeatureStore.open(tmp_path / "features")
    assert opened.states == ["epoch_000"]
    assert (opened.array("first", "epoch_000", 0) == 1).all()


def test_rewriting_a_state_and_forgetting_later_ones(tmp_path):
    store = _store(tmp_path / "features")
    for epoch in range(3):
        _fill(store, f"epoch_{epoch:03d}", epoch)
    (tmp_path / "features/epoch_002/first/layer_00.npy").unlink()  # on its way when the run was killed
    store = FeatureStore.open(tmp_path / "features", only=["epoch_000", "epoch_001"])
    _fill(store, "epoch_001", 9)
    assert FeatureStore.open(tmp_path / "features").states == ["epoch_000", "epoch_001"]
    assert (store.array("first", "epoch_001", 0) == 9).all()


def test_damaged_and_foreign_folders_are_told(tmp_path):
    with pytest.raises(InputError, match="is not a feature store"):
        FeatureStore.open(tmp_path)
    for content, said in (({"states": []}, "format"), ({"format": "bertdyn.features/2"}, "lacks a part .*arrays")):
        (tmp_path / "manifest.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match=said):
            FeatureStore.open(tmp_path)
    folder = tmp_path / "features"
    _fill(_store(folder), "epoch_000", 1.0)
    file = folder / "epoch_000/mean/layer_01.npy"
    content = file.read_bytes()
    file.write_bytes(content[:-4])
    with pytest.raises(InputError, match=r"damaged: .*layer_01.npy"):
        FeatureStore.open(folder)
    np.save(file, np.zeros((3, WIDTH)))
    with pytest.raises(InputError, match=r"damaged: .*float64 \(3, 4\), not float32 \(3, 4\)"):
        FeatureStore.open(folder)
    file.write_bytes(content)
    for table in ("tokens", "examples"):
        whole = pd.read_parquet(folder / f"{table}.parquet")
        whole[1:].to_parquet(folder / f"{table}.parquet")
        with pytest.raises(InputError, match=f"damaged: .*{table}.parquet has"):
            FeatureStore.open(folder)
        (folder / f"{table}.parquet").write_bytes(b"PAR1")
        with pytest.raises(InputError, match=f"damaged: .*{table}.parquet cannot be read"):
            FeatureStore.open(folder)
        whole.to_parquet(folder / f"{table}.parquet")
    FeatureStore.open(folder)
    file.unlink()
    with pytest.raises(InputError, match="damaged"):
        FeatureStore.open(folder)


def test_unknown_selections_name_what_there_is(tmp_path):
    store = _store(tmp_path / "features")
    _fill(store, "epoch_000", 1.0)
    with pytest.raises(InputError, match="no layer 7: accepted are 0, 1"):
        store.array("first", "epoch_000", 7)
    with pytest.raises(InputError, match="no state 'best'"):
        store.array("first", "best", 0)
    with pytest.raises(InputError, match="no kind 'ffn_post_tokens'"):
        store.array(kind_of("ffn_post", "tokens"), "epoch_000", 1)


def test_other_rows_are_told_apart(tmp_path):
    reference = _store(tmp_path / "a")
    same_rows(reference, _store(tmp_path / "b"))
    with pytest.raises(InputError, match="different examples"):
        same_rows(reference, _store(tmp_path / "c", n=2))
    with pytest.raises(InputError, match="another order"):
        same_rows(reference, _store(tmp_path / "d", examples=_examples()[::-1]))
    with pytest.raises(InputError, match="other texts"):
        same_rows(reference, _store(tmp_path / "e", examples=_examples().assign(text="cleaned")))
    with pytest.raises(InputError, match="tokenised differently"):
        same_rows(reference, _store(tmp_path / "f", token_ids=[9, 1, 2, 3, 4, 5]))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_an_error_before_anything_is_written(tmp_path):
    """On a file system without room, memory-mapped rows would end the process by SIGBUS."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(tmp_path)], check=True)
    try:
        store = _store(tmp_path / "features")
        store.manifest.num_examples = 20_000
        with pytest.raises(OSError, match="No space left"):
            begin_state(store, "epoch_000", "weights", resume=False)
        assert not list((tmp_path / "features").glob(".*.done"))
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)
