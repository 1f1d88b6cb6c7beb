"""Tokens a second and memory of extracting hidden states, against the loops that people write.

    BERTDYN_DATA=… python -m benchmarks.extract --nnsight_python /path/to/python

All hidden states of all real tokens of the same GLUE SST-2 phrases, by MiniLM in float32, to float16 files of one
row a token. Every measurement is a process of its own, on one core and one thread; the kinds take turns, and their
order is reversed from round to round. The clock runs from texts to files, tokenising included; texts and model
are loaded, and the model has run once, before it starts.

    huggingface   batches of 32 in the order of the dataset, padded to their longest text; output_hidden_states=True;
                  real tokens by the mask; kept in memory, in the end joined and saved, a file a layer
    fixed_128     the same, every text padded to 128 tokens
    nnsight       the first with nnsight's tracing instead of output_hidden_states; left out without --nnsight_python
    forward       bertdyn's tokenising and its forward passes, recorded, on the batches of `bertdyn`; nothing is kept
    bertdyn       `extract_state` in batches of its default size into a new store, with its tables, waiting for the disk

Measured is peak anonymous memory: pages of mapped files, which the kernel can drop, do not count. What all kinds
extract must be the same up to one step of float16, or the benchmark fails. `bertdyn` also has ten times the texts
once, which should not take more memory.

Phrases of GLUE SST-2 differ much in length, so that two thirds of a batch in their order are padding: a favourable
case. Sorting texts by length saves most of that in the plain loop, too. Linux only.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

KINDS = ("huggingface", "fixed_128", "nnsight", "forward", "bertdyn")
BATCH_SIZE = 32
"""Of all but bertdyn."""
MAX_LENGTH = 128
SECONDS_BETWEEN_SAMPLES = 0.01
MORE_TEXTS = 10

Run = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000, help="texts")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each kind")
    parser.add_argument("--nnsight_python", help="interpreter that has nnsight besides what bertdyn needs")
    parser.add_argument("--kind", choices=KINDS, help="measure once, here, and print JSON")
    parser.add_argument("--folder", type=Path, help="with --kind: has texts.parquet, gets the extracted rows")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/extract.json"))
    options = parser.parse_args()
    if options.kind:
        print(json.dumps(measure(options.kind, options.rows, options.folder)))
        return
    kinds = [kind for kind in KINDS if kind != "nnsight" or options.nnsight_python]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        load_texts(options.rows * MORE_TEXTS).to_parquet(work / "texts.parquet")
        found: dict[str, list[Run]] = {kind: [] for kind in kinds}
        for turn in range(options.rounds):
            for kind in kinds if turn % 2 == 0 else reversed(kinds):
                python = options.nnsight_python if kind == "nnsight" else sys.executable
                run = in_own_process(kind, options.rows, work, python)
                found[kind].append(run)
                print(f"round {turn + 1}  {kind:12} {run}", flush=True)
        more = in_own_process("bertdyn", options.rows * MORE_TEXTS, work, sys.executable)
        print(f"{MORE_TEXTS} times   {'bertdyn':12} {more}", flush=True)
    result = (
        {"texts": options.rows}
        | summary(found, more)
        | {
            "rounds": options.rounds,
            "threads": 1,
            "load_average": os.getloadavg()[0],
            "versions": versions(),
            "versions_nnsight": found["nnsight"][0]["versions"]
            if "nnsight" in found
            else "left out: no --nnsight_python",
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        }
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def summary(found: dict[str, list[Run]], more: Run) -> dict[str, Any]:
    """Medians over the rounds; ratios are of measurements of one round."""
    tokens = found["bertdyn"][0]["tokens"]
    seconds = {kind: [sum(run["seconds"].values()) for run in runs] for kind, runs in found.items()}
    memory = {kind: statistics.median(run["peak_anonymous_mb"] for run in runs) for kind, runs in found.items()}
    without_tables = [sum(run["seconds"].values()) - run["seconds"]["tables"] for run in found["bertdyn"]]
    rates = {kind: round(tokens / statistics.median(values)) for kind, values in seconds.items()}
    rates["bertdyn_without_tables"] = round(tokens / statistics.median(without_tables))
    peers = [kind for kind in found if kind not in ("forward", "bertdyn")]
    writing = [
        100 * (ours["seconds"]["rows"] / bare["seconds"]["rows"] - 1)
        for ours, bare in zip(found["bertdyn"], found["forward"], strict=True)
    ]
    return {
        "tokens": tokens,
        "tokens_per_second": rates,
        "bertdyn_times": {peer: spread(_ratios(seconds[peer], seconds["bertdyn"]), 2) for peer in peers},
        "bertdyn_without_tables_times": {peer: spread(_ratios(seconds[peer], without_tables), 2) for peer in peers},
        "writing_percent_over_forward": spread(writing, 1),
        "bertdyn_seconds": {
            stage: round(statistics.median(run["seconds"][stage] for run in found["bertdyn"]), 3)
            for stage in found["bertdyn"][0]["seconds"]
        },
        "peak_anonymous_mb": {kind: round(value) for kind, value in memory.items()},
        "anonymous_mb_before": {
            kind: round(statistics.median(run["anonymous_mb_before"] for run in runs)) for kind, runs in found.items()
        },
        "ten_times_the_texts": {
            "tokens": more["tokens"],
            "tokens_per_second": round(more["tokens"] / sum(more["seconds"].values())),
            "peak_anonymous_mb": round(more["peak_anonymous_mb"]),
            "more_memory_percent": round(100 * (more["peak_anonymous_mb"] / memory["bertdyn"] - 1), 1),
        },
        "largest_difference_to_huggingface": {
            kind: max(run["difference"] for run in runs) for kind, runs in found.items() if kind != "forward"
        },
    }


def spread(values: list[float], digits: int) -> dict[str, float]:
    """Their median and their range."""
    found = {"median": statistics.median(values), "low": min(values), "high": max(values)}
    return {name: round(value, digits) for name, value in found.items()}


def _ratios(theirs: list[float], ours: list[float]) -> list[float]:
    return [a / b for a, b in zip(theirs, ours, strict=True)]


def load_texts(rows: int) -> pd.DataFrame:
    """A seeded sample of the training part; any prefix of it is one, too."""
    from bertdyn.data.config import DataConfig
    from bertdyn.data.loading import load_data

    folder = Path(os.environ["BERTDYN_DATA"]).resolve() / "sst2_glue"
    return load_data(DataConfig(dataset="sst2", data_dir=str(folder), max_train_samples=rows)).parts["train"]


def in_own_process(kind: str, rows: int, work: Path, python: str) -> Run:
    """One measurement in a fresh process on one core; what it extracted is compared and deleted."""
    folder = work / "run"
    folder.mkdir()
    shutil.copy(work / "texts.parquet", folder)
    command = [python, "-m", "benchmarks.extract", "--kind", kind, "--rows", str(rows), "--folder", str(folder)]
    one_core = {max(os.sched_getaffinity(0))}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {"TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, one_core),
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    run = json.loads(done.stdout.strip().splitlines()[-1])
    if not (work / "expected").exists():
        folder.rename(work / "expected")
        folder.mkdir()
        run["difference"] = 0.0
    elif kind != "forward":
        run["difference"] = difference(folder, work / "expected", kind)
    shutil.rmtree(folder)
    return run


def difference(folder: Path, expected: Path, kind: str) -> float:
    """The largest one of any value, of the rows that both have.

    Raises
    ------
    AssertionError
        If one is larger than a step of float16.
    """
    pairs = list(zip(sorted(folder.rglob("layer_*.npy")), sorted(expected.rglob("layer_*.npy")), strict=True))
    largest = 0.0
    for ours, theirs in pairs:
        a, b = (np.load(path, mmap_mode="r") for path in (ours, theirs))
        rows = min(len(a), len(b))
        one, other = (array[:rows].astype(np.float32) for array in (a, b))
        np.testing.assert_allclose(one, other, rtol=2**-10, atol=2e-5, err_msg=f"{kind}: {ours.name}")
        largest = max(largest, float(np.abs(one - other).max()))
    return largest


def measure(kind: str, rows: int, folder: Path) -> Run:
    """Extract once: seconds of its stages, memory in MiB before and at its peak."""
    import torch

    torch.set_num_threads(1)
    frame = pd.read_parquet(folder / "texts.parquet")[:rows]
    (folder / "texts.parquet").unlink()
    if kind in ("forward", "bertdyn"):
        return (forward if kind == "forward" else extract)(frame, folder)
    run = plain_loop(kind, frame, folder)
    return run | ({"versions": versions("nnsight")} if kind == "nnsight" else {})


def versions(*more: str) -> dict[str, str]:
    return {name: metadata.version(name) for name in ("torch", "transformers", "numpy", *more)}


def plain_loop(kind: str, frame: pd.DataFrame, folder: Path) -> Run:
    """What people write."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    from bertdyn.models.loading import local_name

    name = local_name("minilm")
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModel.from_pretrained(name, dtype="float32").eval()
    texts = frame["text"].tolist()
    padding: Any = "max_length" if kind == "fixed_128" else True
    if kind == "nnsight":
        states_of = traced(model)
    else:

        def states_of(inputs: Any) -> Any:
            return model(**inputs, output_hidden_states=True).hidden_states

    def inputs_of(start: int) -> Any:
        batch = texts[start : start + BATCH_SIZE]
        return tokenizer(batch, padding=padding, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")

    with torch.inference_mode():
        states_of(inputs_of(0))
        with Watch() as watch:
            layers: list[list[np.ndarray]] = [[] for _ in range(model.config.num_hidden_layers + 1)]
            for start in range(0, len(texts), BATCH_SIZE):
                inputs = inputs_of(start)
                real = inputs["attention_mask"].bool()
                for layer, states in zip(layers, states_of(inputs), strict=True):
                    layer.append(states[real].half().numpy())
            for number, layer in enumerate(layers):
                np.save(folder / f"layer_{number:02d}.npy", np.concatenate(layer))
            watch.stage("rows")
    return watch.run(sum(map(len, layers[0])))


def traced(model: Any) -> Callable[[Any], list[Any]]:
    """The output of the embeddings and of every layer, by nnsight."""
    import nnsight

    wrapped = nnsight.NNsight(model)

    def states_of(inputs: Any) -> list[Any]:
        with wrapped.trace(**inputs):
            states = [wrapped.embeddings.output, *(layer.output for layer in wrapped.encoder.layer)]
            nnsight.save(states)
        return states

    return states_of


def extract(frame: pd.DataFrame, folder: Path) -> Run:
    """As `extract` does it, without a tracker."""
    from accelerate import Accelerator

    from bertdyn.features.extraction import extract_state
    from bertdyn.features.writing import create_store

    accelerator = Accelerator(cpu=True)
    model, tokenizer = ready_model()
    with Watch() as watch:
        texts, manifest = tokenised(frame, model, tokenizer, folder)
        watch.stage("tokens")
        store = create_store(folder / "features", manifest, texts.example_table(), texts.token_pieces(tokenizer))
        watch.stage("tables")
        extract_state(accelerator, model, texts, tokenizer, store, "model")
        watch.stage("rows")
    return watch.run(manifest.num_tokens)


def forward(frame: pd.DataFrame, folder: Path) -> Run:
    """The same batches through the model, and nothing more."""
    import inspect

    import torch

    from bertdyn.data.batching import make_batches, model_inputs
    from bertdyn.features.extraction import extract_state, plan_chunks
    from bertdyn.features.store import FeatureStore
    from bertdyn.models.recording import recording

    batch_size = inspect.signature(extract_state).parameters["batch_size"].default
    model, tokenizer = ready_model()
    with Watch() as watch:
        texts, manifest = tokenised(frame, model, tokenizer, folder)
        watch.stage("tokens")
        wanted = {info.site: info.layers for info in manifest.arrays.values()}
        with torch.inference_mode(), recording(model, wanted) as record:
            for chunk in plan_chunks(texts, FeatureStore(folder, manifest)):
                sequences = texts.sequences.select(chunk.sequences)
                for batch in make_batches(sequences, tokenizer, batch_size, shuffle=False, token_rows=True):
                    record(model_inputs(batch))
        watch.stage("rows")
    return watch.run(manifest.num_tokens)


def ready_model() -> tuple[Any, Any]:
    """MiniLM that computes no padding, once run, and its tokenizer."""
    import torch

    from bertdyn.models.loading import load_encoder, load_tokenizer
    from bertdyn.models.unpadded import run_unpadded

    tokenizer, model = load_tokenizer("minilm"), load_encoder("minilm").eval()
    run_unpadded(model)
    with torch.inference_mode():
        model(**tokenizer(["a text", "another one"] * (BATCH_SIZE // 2), padding=True, return_tensors="pt"))
    return model, tokenizer


def tokenised(frame: pd.DataFrame, model: Any, tokenizer: Any, folder: Path) -> tuple[Any, Any]:
    """The texts, and the manifest of a store with all layers of their tokens."""
    from bertdyn.data.text_data import TextData
    from bertdyn.data.tokenization import tokenize_parts
    from bertdyn.features.extraction import make_manifest
    from bertdyn.features.texts import texts_of

    data = TextData({"train": frame}, ["negative", "positive"], "sst2", "", "benchmark", {})
    tokens = tokenize_parts(data, tokenizer, MAX_LENGTH, folder / "tokens")
    texts = texts_of(data, tokens, ["train"])
    layers = range(model.config.num_hidden_layers + 1)
    manifest = make_manifest(
        model,
        texts,
        rows=["tokens"],
        layers=layers,
        dtype="float16",
        label_names=data.label_names,
        fingerprints={"data": data.fingerprint},
    )
    return texts, manifest


class Watch:
    """Times stages, and samples the anonymous memory of this process meanwhile."""

    def __enter__(self) -> "Watch":
        self.seconds: dict[str, float] = {}
        self.before = self.peak = anonymous_mb()
        self._ended = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()
        self._started = time.perf_counter()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._sampler.join()

    def _sample(self) -> None:
        while not self._ended.wait(SECONDS_BETWEEN_SAMPLES):
            self.peak = max(self.peak, anonymous_mb())

    def stage(self, name: str) -> None:
        """What ran since the last call was `name`."""
        now = time.perf_counter()
        self.seconds[name] = round(now - self._started, 3)
        self._started = now

    def run(self, tokens: int) -> Run:
        """What was found."""
        memory = {"peak_anonymous_mb": round(self.peak, 1), "anonymous_mb_before": round(self.before, 1)}
        return {"tokens": tokens, "seconds": self.seconds, **memory}


def anonymous_mb() -> float:
    """Resident memory of this process that no file stands behind, in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split(maxsplit=1)[0]) / 1024


if __name__ == "__main__":
    main()
