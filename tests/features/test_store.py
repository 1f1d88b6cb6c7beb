import json
import os
import subprocess

import numpy as np
import pandas as pd
import pytest

from bertdyn.errors import InputError
from bertdyn.features.store import FeatureStore, Manifest, same_rows


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


def _store(folder, n=3):
    manifest = Manifest(
        width=4,
        layers=[0, 1],
        num_examples=n,
        num_tokens=0,
        kinds=["first", "mean"],
        dtype="float32",
        fingerprints={"data": "x"},
    )
    return FeatureStore.create(folder, _examples(n), manifest)


def _fill(store, state, value):
    with store.write_state(state) as arrays:
        for array in arrays.values():
            array[:] = value


def test_what_is_written_is_read_back_with_numpy_and_pandas_alone(tmp_path):
    store = _store(tmp_path / "features")
    with store.write_state("epoch_000") as arrays:
        for (kind, layer), array in arrays.items():
            array[:] = np.arange(12).reshape(3, 4) + 100 * layer + (0.5 if kind == "mean" else 0)
    store.write_predictions("epoch_000", np.array([[0.1, 0.9], [2, 1], [0, 1]]))

    opened = FeatureStore.open(tmp_path / "features")
    assert opened.states == ["epoch_000"]
    rows = opened.array("mean", "epoch_000", 1)
    np.testing.assert_array_equal(rows, np.arange(12).reshape(3, 4) + 100.5)
    assert isinstance(rows, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        rows[0] = 0
    plain = np.load(tmp_path / "features/epoch_000/first/layer_01.npy")
    np.testing.assert_array_equal(plain, np.arange(12).reshape(3, 4) + 100)
    examples = pd.read_parquet(tmp_path / "features/examples.parquet")
    assert examples["prediction_epoch_000"].tolist() == [1, 0, 1]
    assert opened.logits("epoch_000").shape == (3, 2)


def test_a_state_that_fails_never_shows(tmp_path):
    store = _store(tmp_path / "features")
    _fill(store, "epoch_000", 1.0)
    with pytest.raises(RuntimeError, match="killed"), store.write_state("epoch_001") as arrays:
        arrays["first", 0][:] = 2
        raise RuntimeError("killed")
    assert FeatureStore.open(tmp_path / "features").states == ["epoch_000"]
    assert not list((tmp_path / "features").glob(".*"))


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
    (tmp_path / "manifest.json").write_text(json.dumps({"states": {}}))
    with pytest.raises(InputError, match="format"):
        FeatureStore.open(tmp_path)
    store = _store(tmp_path / "features")
    _fill(store, "epoch_000", 1.0)
    file = tmp_path / "features/epoch_000/mean/layer_01.npy"
    content = file.read_bytes()
    file.write_bytes(content[:-4])
    with pytest.raises(InputError, match=r"damaged: .*layer_01.npy"):
        FeatureStore.open(tmp_path / "features")
    file.unlink()
    with pytest.raises(InputError, match="damaged"):
        FeatureStore.open(tmp_path / "features")


def test_unknown_selections_name_what_there_is(tmp_path):
    store = _store(tmp_path / "features")
    _fill(store, "epoch_000", 1.0)
    with pytest.raises(InputError, match="no layer 7: accepted are 0, 1"):
        store.array("first", "epoch_000", 7)
    with pytest.raises(InputError, match="no state 'best'"):
        store.array("first", "best", 0)
    with pytest.raises(InputError, match="no kind 'attention'"):
        store.array("attention", "epoch_000", 1)


def test_other_rows_are_told_apart(tmp_path):
    same_rows(_store(tmp_path / "a"), _store(tmp_path / "b"))
    with pytest.raises(InputError, match="different examples"):
        same_rows(_store(tmp_path / "a"), _store(tmp_path / "c", n=2))


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_an_error_before_anything_is_written(tmp_path):
    """On a file system without room, memory-mapped rows would end the process by SIGBUS."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(tmp_path)], check=True)
    try:
        store = _store(tmp_path / "features")
        store.manifest.num_examples, store.manifest.width = 1000, 100
        with pytest.raises(OSError, match="No space left"), store.write_state("epoch_000"):
            pass
        assert [path.name for path in (tmp_path / "features").iterdir() if path.is_dir()] == []
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)
