"""Extraction as a function, without MLflow: what is in a store, and that nothing but its inputs decides it."""

import dataclasses
import filecmp
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from bertdyn.data.config import DataConfig
from bertdyn.data.loading import load_data
from bertdyn.data.synthetic import LABEL_NAMES
from bertdyn.errors import InputError
from bertdyn.features import extraction, writing
from bertdyn.features.store import FeatureStore
from bertdyn.steps import extraction as step
from bertdyn.steps.config import ExtractConfig
from bertdyn.steps.extraction import ExtractResult, extract
from bertdyn.steps.sources import State
from bertdyn.tracking.tracker import Tracker
from tests.families import FAMILIES, LAYERS
from tests.features.test_extraction import same_folders
from tests.squad_files import write_squad

SMALL = {"max_train_samples": 20, "max_validation_samples": 5, "max_probe_samples": 10, "max_test_samples": 6}


def run(folder: Path, model: Path | str, **options) -> ExtractResult:
    return extract(ExtractConfig(model_name_or_path=str(model), **SMALL | options), Tracker(folder))


def files_of(store: FeatureStore) -> set[str]:
    return {str(path.relative_to(store.folder)) for path in store.folder.rglob("*") if path.is_file()}


@torch.inference_mode()
def hidden_states(model, ids) -> list[np.ndarray]:
    """Of one sequence, by layer, [tokens, hidden]."""
    output = model(input_ids=torch.as_tensor(ids)[None], output_hidden_states=True)
    return [layer[0].numpy() for layer in output.hidden_states]


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_those_of_a_direct_forward(checkpoints, family, tmp_path):
    store = run(
        tmp_path, checkpoints[family], rows="tokens,first,mean", dtype="float32", per_device_eval_batch_size=4
    ).store
    assert store.states == ["model"]
    model, tokenizer = (auto.from_pretrained(checkpoints[family]) for auto in (AutoModel, AutoTokenizer))
    model.eval()
    examples, tokens = store.examples(), store.tokens()
    assert examples["part"].tolist() == ["train"] * 20 + ["probe"] * 10
    for i in (0, 7, 19, 20, 29):
        ids = tokenizer(examples["text"][i])["input_ids"]
        first, count = examples.loc[i, ["first_row", "n_rows"]]
        rows = slice(first, first + count)
        assert tokens["token_id"][rows].tolist() == ids
        assert tokens["row"][rows].tolist() == list(range(first, first + count))
        assert tokens["position"][rows].tolist() == list(range(count))
        assert set(tokens["example_id"][rows]) == {examples["example_id"][i]}
        for layer, expected in enumerate(hidden_states(model, ids)):
            for kind, values in (
                ("tokens", expected),
                ("first", expected[:1]),
                ("mean", expected.mean(0, keepdims=True)),
            ):
                stored = store.array(kind, "model", layer)[rows if kind == "tokens" else slice(i, i + 1)]
                np.testing.assert_allclose(stored, values, atol=1e-5)
    half = run(tmp_path / "half", checkpoints[family]).store
    for layer in range(LAYERS + 1):
        rounded = half.array("tokens", "model", layer)
        assert rounded.dtype == np.float16
        np.testing.assert_allclose(rounded, store.array("tokens", "model", layer), atol=1e-2)


def test_a_token_row_leads_to_its_characters(checkpoints, tmp_path):
    """Of texts that are cut, too; the tokens in between are the text."""
    store = run(tmp_path, checkpoints["bert"], max_length=12).store
    examples, tokens = store.examples().set_index("example_id"), store.tokens()
    assert examples["n_rows"].max() == 12
    assert examples["n_rows"].sum() == len(tokens) == len(store.array("tokens", "model", 1))
    assert Counter(tokens["token"][tokens["is_special"]]) == {"[CLS]": 30, "[SEP]": 30}
    assert set(tokens["segment"][tokens["is_special"]]) == {-1}
    for name, rows in tokens[~tokens["is_special"]].groupby("example_id", sort=False):
        text = examples.at[name, "text"]
        said = [text[start:end] for start, end in zip(rows["char_start"], rows["char_end"], strict=True)]
        assert [piece.lower() for piece in said] == [token.removeprefix("##") for token in rows["token"]]
        assert "".join(said) == text[: rows["char_end"].max()].replace(" ", "")
        assert set(rows["window_id"]) == set(rows["segment"]) == {0}


def test_parts_and_subsets(checkpoints, tmp_path):
    """Parts in the order asked for; a smaller subset is the beginning of a larger one, rows included."""
    whole = load_data(DataConfig(max_test_samples=30, max_validation_samples=8))
    store = run(tmp_path / "a", checkpoints["bert"], parts="test,validation", max_test_samples=30,
                max_validation_samples=8, dtype="float32").store  # fmt: skip
    ids = [*whole.parts["test"]["example_id"], *whole.parts["validation"]["example_id"]]
    assert store.examples()["example_id"].tolist() == ids
    assert store.examples()["label"].tolist() == [*whole.parts["test"]["label"], *whole.parts["validation"]["label"]]
    small = run(tmp_path / "b", checkpoints["bert"], parts="test", max_test_samples=9, dtype="float32").store
    assert small.examples()["example_id"].tolist() == ids[:9]
    rows = small.array("tokens", "model", LAYERS)
    np.testing.assert_allclose(rows, store.array("tokens", "model", LAYERS)[: len(rows)], atol=1e-5)
    other = run(tmp_path / "c", checkpoints["bert"], parts="test", max_test_samples=9, data_seed=1).store
    assert set(other.examples()["example_id"]) != set(ids[:9])


TABLES = {"manifest.json", "examples.parquet"}


@pytest.mark.parametrize(
    ("options", "arrays"),
    [
        ({"layers": "-1", "rows": "first"}, ["first/layer_03"]),
        (
            {"layers": "0,-1,3", "rows": "mean,tokens"},
            ["mean/layer_00", "mean/layer_03", "tokens/layer_00", "tokens/layer_03"],
        ),
        (
            {"layers": "0,2", "rows": "first", "activations": "hidden,attention_output,ffn_pre,ffn_post,attention"},
            ["first/layer_00", "first/layer_02", "attention_output_first/layer_02", "ffn_pre_first/layer_02",
             "ffn_post_first/layer_02", "attention/layer_02"],
        ),
        ({"activations": "ffn_post"}, [f"ffn_post_tokens/layer_0{number}" for number in (1, 2, 3)]),
    ],
)  # fmt: skip
def test_only_what_is_asked_for_is_stored(checkpoints, tmp_path, options, arrays):
    store = run(tmp_path, checkpoints["bert"], **options).store
    by_token = any("tokens" in name or name.startswith("attention/") for name in arrays)
    tables = TABLES | ({"tokens.parquet"} if by_token else set())
    assert files_of(store) == tables | {f"model/{name}.npy" for name in arrays}
    assert bool(store.manifest.num_tokens) == by_token
    for name in arrays:
        kind, layer = name.split("/layer_")
        array = store.array(kind, "model", int(layer))
        rows = store.manifest.num_tokens if "tokens" in kind or kind == "attention" else 30
        width = () if kind == "attention" else (64,) if kind.startswith("ffn") else (32,)
        assert array.shape == (rows, *width)
        if kind == "attention":  # of the first token to each token of its text
            starts = store.examples()["first_row"]
            np.testing.assert_allclose(np.add.reduceat(array.astype(float), starts), 1, atol=2e-3)


def _edit_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.1.output.dense.bias"] = weights["encoder.layer.1.output.dense.bias"] + 1e-3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_fingerprints_follow_what_they_are_of(checkpoints, tmp_path):
    """Model, tokenizer and data each change their own fingerprint; a path or a name changes none."""

    def prints(name: str, edit=None, **options) -> dict[str, str]:
        folder = shutil.copytree(checkpoints["bert"], tmp_path / f"model-{name}")
        if edit:
            edit(folder)
        manifest = json.loads((run(tmp_path / name, folder, **options).store.folder / "manifest.json").read_text())
        [state] = manifest["states"]
        return manifest["fingerprints"] | {"model": state["model"]}

    def with_case(folder: Path) -> None:
        AutoTokenizer.from_pretrained(folder, do_lower_case=False).save_pretrained(folder)

    def changed(name: str, *args, **options) -> set[str]:
        found = prints(name, *args, **options)
        assert set(found) == set(usual)
        return {key for key in usual if found[key] != usual[key]}

    usual = prints("usual")
    assert {"data", "tokenizer", "model"} <= set(usual)
    assert changed("again") == set()
    assert changed("batches", per_device_eval_batch_size=3, layers="0", dtype="float32") == set()
    assert changed("weights", _edit_weights) == {"model"}
    assert changed("tokenizer", with_case) == {"tokenizer"}
    assert changed("seed", data_seed=1) == {"data"}
    assert changed("size", max_train_samples=19) == {"data"}


@pytest.mark.parametrize("kind", ["encoder", "checkpoint without a pooler"])
def test_the_same_call_gives_the_same_bytes(checkpoints, tmp_path, kind):
    """Also where transformers draws weights that the checkpoint lacks, and whatever was drawn before."""
    folder = shutil.copytree(checkpoints["camembert"], tmp_path / "model")
    if kind != "encoder":
        AutoModelForSequenceClassification.from_pretrained(folder).save_pretrained(folder)
        assert not [name for name in load_file(folder / "model.safetensors") if "pooler" in name]
    options = {"rows": "tokens,first,mean", "activations": "hidden,ffn_pre,attention"}
    torch.manual_seed(1)
    one = run(tmp_path / "one", folder, **options).store
    torch.manual_seed(2)
    other = run(tmp_path / "other", folder, **options).store
    assert same_folders(one.folder, other.folder)


BAD = {
    "layer outside": ({"layers": "9"}, r"--layers '9': the model has no layer 9; accepted are 0 \(embeddings\) to 3"),
    "layer below": ({"layers": "1,-5"}, "--layers '1,-5': the model has no layer -5"),
    "no layer left": ({"layers": "0", "activations": "ffn_post"}, "--layers '0' with --activations 'ffn_post'"),
    "a site without a layer": ({"layers": "0", "activations": "hidden,attention"}, "--layers '0' with --activations"),
    "no row": ({"parts": " , "}, r"--parts ' , ': accepted are train, validation, probe, test"),
    "no text": ({"max_probe_samples": 0}, "--max_probe_samples 0: no row; accepted: 1 or more"),
    "unknown rows": ({"rows": "first,sometimes"}, "--rows 'first,sometimes': accepted are first, mean, tokens"),
    "unknown part": ({"parts": "dev"}, "--parts 'dev': accepted are train, validation, probe, test"),
    "unknown site": ({"activations": "gelu"}, "--activations 'gelu': accepted are hidden, context, attention_output"),
    "unknown type": ({"dtype": "int8"}, "--dtype 'int8': accepted are float16, float32"),
    "texts longer than the model": ({"max_length": 600}, r"--max_length 600 .*accepted are at most 512"),
    "no text in a batch": ({"per_device_eval_batch_size": 0}, "--per_device_eval_batch_size 0: accepted: 1 or more"),
    "states of a model": ({"states": "best"}, "--states 'best'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_said_and_nothing_is_stored(checkpoints, tmp_path, case):
    options, said = BAD[case]
    with pytest.raises(InputError, match=said):
        run(tmp_path / "run", checkpoints["bert"], **options)
    assert not (tmp_path / "run/features").exists()


def test_a_tokenizer_of_another_model_is_said(checkpoints, tmp_path):
    with pytest.raises(InputError, match=r"the tokenizer has \d+ tokens, the model embeds 600.*--tokenizer_name"):
        run(tmp_path, checkpoints["roberta"], tokenizer_name=str(checkpoints["bert"]))
    assert not (tmp_path / "features").exists()


def test_the_size_is_said_before_the_start_and_must_fit(checkpoints, tmp_path, monkeypatch, caplog):
    """What is predicted is what the arrays take: with a byte less nothing is begun."""
    caplog.set_level("INFO", logger="bertdyn")
    store = run(tmp_path / "whole", checkpoints["bert"], rows="tokens,mean", activations="hidden,ffn_pre").store
    size = sum(np.load(path).nbytes for path in store.folder.rglob("*.npy"))
    [said] = [record.getMessage() for record in caplog.records if record.getMessage().startswith("features: ")]
    assert f"{store.manifest.num_tokens:,} tokens of 30 texts: {size / 1e9:.2f} GB in" in said

    def room(free: int):
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free))

    room(size - 1)
    with pytest.raises(InputError, match=r"GB, and .* left: take fewer --layers, --states, .*--dtype float16") as error:
        run(tmp_path / "cut", checkpoints["bert"], rows="tokens,mean", activations="hidden,ffn_pre")
    assert f"take {size / 1e9:.2f} GB" in str(error.value)
    assert not (tmp_path / "cut/features").exists()
    room(size)
    run(tmp_path / "fits", checkpoints["bert"], rows="tokens,mean", activations="hidden,ffn_pre")


def test_questions_have_the_tokens_of_all_their_windows(checkpoints, tmp_path):
    """As the tokenizer itself cuts them; pooled rows are those of the first window."""
    squad = write_squad(tmp_path / "squad")
    options = {"dataset": "squad_v2", "data_dir": str(squad), "max_length": 96, "doc_stride": 16}
    store = run(tmp_path / "run", checkpoints["bert"], rows="tokens,first,mean", dtype="float32", **options).store
    model, tokenizer = (auto.from_pretrained(checkpoints["bert"]) for auto in (AutoModel, AutoTokenizer))
    model.eval()
    examples, tokens = store.examples(), store.tokens()
    whole = load_data(DataConfig(**options, **SMALL))
    assert examples["example_id"].tolist() == [
        name for part in ("train", "probe") for name in whole.parts[part]["example_id"]
    ]
    several = 0
    for i, example in examples.iterrows():
        windows = tokenizer(
            example["text"], example["text_pair"], truncation="only_second", max_length=96, stride=16,
            return_overflowing_tokens=True,
        )  # fmt: skip
        several += len(windows["input_ids"]) > 1
        rows = tokens.iloc[example["first_row"] : example["first_row"] + example["n_rows"]]
        assert rows["token_id"].tolist() == sum(windows["input_ids"], [])
        assert rows["window_id"].tolist() == [w for w, ids in enumerate(windows["input_ids"]) for _ in ids]
        for row in rows[~rows["is_special"]][::7].itertuples():
            text = (example["text"], example["text_pair"])[row.segment]
            assert text[row.char_start : row.char_end].lower() == row.token.removeprefix("##")
        if i % 6:
            continue
        expected = []
        for ids, types in zip(windows["input_ids"], windows["token_type_ids"], strict=True):
            with torch.inference_mode():
                output = model(torch.tensor([ids]), token_type_ids=torch.tensor([types]))
            expected.append(output.last_hidden_state[0].numpy())
        stored = store.example(example["example_id"], "tokens", "model", LAYERS)
        np.testing.assert_allclose(stored, np.concatenate(expected), atol=1e-5)
        np.testing.assert_allclose(store.array("first", "model", LAYERS)[i], expected[0][0], atol=1e-5)
        np.testing.assert_allclose(store.array("mean", "model", LAYERS)[i], expected[0].mean(0), atol=1e-5)
    assert several > 5


@pytest.mark.parametrize("dataset", ["synthetic", "squad_v2"])
def test_the_tables_of_the_report_are_tables(checkpoints, tmp_path, dataset):
    options = {"dataset": dataset}
    if dataset == "squad_v2":
        options |= {"data_dir": str(write_squad(tmp_path / "squad")), "max_length": 96, "doc_stride": 16}
    result = run(tmp_path / "run", checkpoints["bert"], **options)
    assert (tmp_path / "run/summary.md").read_text() == result.summary
    tables = [lines.split("\n") for lines in result.summary.split("\n\n") if lines.startswith("|")]
    assert len(tables) == 2
    for table in tables:
        assert len({line.count("|") for line in table}) == 1, table  # else it is shown as text
    assert f"| `tokens` | {result.store.manifest.num_tokens:,} × 32 | 0, 1, 2, 3 | float16 |" in result.summary


class _Killed(BaseException):
    pass


class _Disk:
    """Counts what changes `folder`, and dies before change number `at`: after that nothing changes any more."""

    def __init__(self, monkeypatch, folder: Path, at: int | None = None) -> None:
        self.folder, self.at, self.changes = str(folder), at, 0
        for module, names in ((os, ("rename", "replace", "mkdir", "unlink", "open")), (shutil, ("rmtree",))):
            for name in names:
                monkeypatch.setattr(module, name, self._watched(getattr(module, name), name))

    def _watched(self, change, name: str):
        def watched(path, *args, **kwargs):
            if name in ("unlink", "rmtree"):
                changes = os.path.lexists(path)
            else:
                changes = name != "open" or (args and args[0] & os.O_CREAT)
            if changes and str(path).startswith(self.folder):
                self.changes += 1
                if self.at is not None and self.changes >= self.at:
                    if self.changes == self.at and name == "rmtree":  # cut in the middle of it
                        files = [file for file in Path(path).rglob("*") if file.is_file()]
                        for file in files[: len(files) // 2]:
                            os.remove(file)
                    raise _Killed
            return change(path, *args, **kwargs)

        return watched


@pytest.mark.slow
def test_killed_before_any_change_of_the_disk_and_resumed(checkpoints, tmp_path, monkeypatch):
    """Every moment, one after another: nothing half-written is visible, and the end is that of one go."""
    with_head = AutoModelForSequenceClassification.from_pretrained(
        checkpoints["roberta"],
        id2label=dict(enumerate(LABEL_NAMES)),
        label2id={n: i for i, n in enumerate(LABEL_NAMES)},
    )
    for name in ("epoch_000", "epoch_001"):
        with_head.save_pretrained(tmp_path / name)
        AutoTokenizer.from_pretrained(checkpoints["roberta"]).save_pretrained(tmp_path / name)
        with torch.no_grad():
            with_head.roberta.encoder.layer[0].output.dense.weight.mul_(1.5)
    source = [("pretrained", "epoch_000"), ("best", "epoch_001"), ("last", "epoch_001")]
    states = [State(name, checkpoint, str(tmp_path / checkpoint)) for name, checkpoint in source]
    data = load_data(DataConfig(**SMALL))
    monkeypatch.setattr(step, "with_source_data", lambda config: config)
    monkeypatch.setattr(step, "load_source_data", lambda run_id: data)
    monkeypatch.setattr(step, "find_states", lambda run_id, wanted: states)
    monkeypatch.setattr(extraction, "BYTES_PER_CHUNK", 30_000)
    monkeypatch.setattr(writing, "SECONDS_BETWEEN_SYNCS", 0)
    monkeypatch.setattr(np.memmap, "flush", lambda array: None)  # what a dead process wrote, the system still has
    config = ExtractConfig(source_run_id="0", layers="0,3", rows="tokens,mean", **SMALL)
    computed = Counter()

    def write(self, writer, state, original=extraction._ChunkRows.write):
        computed[writer._marks.name, self.chunk.name] += 1
        original(self, writer, state)

    monkeypatch.setattr(extraction._ChunkRows, "write", write)
    with monkeypatch.context() as watching:
        disk = _Disk(watching, tmp_path / "whole/features")
        whole = extract(config, Tracker(tmp_path / "whole"))
    assert whole.store.states == ["pretrained", "best", "last"]
    chunks = computed.copy()
    assert len(chunks) >= 6
    assert set(chunks.values()) == {1}
    assert disk.changes > 25
    for at in range(1, disk.changes + 1):
        folder = tmp_path / f"cut-{at}"
        with monkeypatch.context() as watching:
            _Disk(watching, folder / "features", at)
            with pytest.raises(_Killed):
                extract(config, Tracker(folder))
        found = folder / "features"
        seen = FeatureStore.open(found) if (found / "manifest.json").exists() else None
        complete = seen.states if seen else []
        assert complete == whole.store.states[: len(complete)]
        for state in complete:
            np.testing.assert_array_equal(seen.logits(state), whole.store.logits(state))
            np.testing.assert_array_equal(seen.array("tokens", state, 3), whole.store.array("tokens", state, 3))
        marked = {(mark.parent.name, mark.name) for mark in found.glob(".*.done/0*")}
        kept = marked | {(f".{info.folder}.done", name) for info in (seen.manifest.states if seen else [])
                         for of, name in chunks if of == f".{info.folder}.done"}  # fmt: skip
        computed.clear()
        result = extract(dataclasses.replace(config, resume_run_id="this one"), Tracker(folder))
        assert not kept & set(computed), f"change {at}: computed again"
        assert same_folders(tmp_path / "whole/features", found), f"change {at}"
        assert result.summary == whole.summary.replace(str(tmp_path / "whole"), str(folder))
        shutil.rmtree(folder)


def test_another_model_or_other_texts_are_not_mixed_into_a_store_that_was_begun(checkpoints, tmp_path, monkeypatch):
    """A folder trained on, or an alias moved, between the kill and the resume."""
    model = shutil.copytree(checkpoints["bert"], tmp_path / "model")
    monkeypatch.setattr(extraction, "BYTES_PER_CHUNK", 12_000)
    monkeypatch.setattr(writing, "SECONDS_BETWEEN_SYNCS", 0)
    config = ExtractConfig(model_name_or_path=str(model), **SMALL)
    with monkeypatch.context() as cut:
        written = []

        def write(self, *args, original=extraction._ChunkRows.write):
            if len(written) == 2:
                raise _Killed
            written.append(original(self, *args))

        cut.setattr(extraction._ChunkRows, "write", write)
        with pytest.raises(_Killed):
            extract(config, Tracker(tmp_path / "run"))
    assert len(list((tmp_path / "run/features").glob(".model.done/0*"))) == 2
    resumed = dataclasses.replace(config, resume_run_id="this one")
    with pytest.raises(InputError, match="--resume_run_id this one: its store was begun with other texts"):
        extract(dataclasses.replace(resumed, data_seed=1), Tracker(tmp_path / "run"))
    before = (model / "model.safetensors").read_bytes()
    _edit_weights(model)
    with pytest.raises(InputError, match="--resume_run_id this one: .*another model"):
        extract(resumed, Tracker(tmp_path / "run"))
    (model / "model.safetensors").write_bytes(before)
    extract(resumed, Tracker(tmp_path / "run"))
    whole = run(tmp_path / "whole", model).store
    assert filecmp.cmp(
        whole.folder / "model/tokens/layer_03.npy", tmp_path / "run/features/model/tokens/layer_03.npy", shallow=False
    )
