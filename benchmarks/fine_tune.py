"""Examples a second of fine-tuning, against Hugging Face's Trainer.

    BERTDYN_DATA=… python -m benchmarks.fine_tune --output benchmarks/results/fine_tune.json

The same MiniLM checkpoint, the same GLUE SST-2 rows (tokenised before the clock starts), batches of 32 in a
shuffled order, at most 128 tokens, float32 (bfloat16 on a GPU), AdamW with a linear schedule and clipping. Every
measurement is a process of its own, on one core and one thread; the kinds take turns, and their order is
reversed from round to round. Measured is one epoch (the Trainer's with its set-up, well under a second), and the
process's peak resident memory.

    trainer   transformers.Trainer, padding to the longest text of a batch, nothing evaluated, saved or reported
    padded    bertdyn's loop without listeners, computing the padding as the Trainer does
    bare      the same, computing no padding
    full      with all that `fine-tune` does in an epoch: norms and gradients; evaluation and features of as many
              rows for 100 training rows as in all of GLUE SST-2 (11.5 of validation, 3.4 of probe); checkpoint with
              optimiser state; MLflow on SQLite with system metrics

Phrases of GLUE SST-2 differ much in length, so that two thirds of a shuffled batch are padding: a favourable case.
Grouping texts by length (the Trainer's `train_sampling_strategy`) saves padding, too, but changes the batches.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

KINDS = ("trainer", "padded", "bare", "full")
BATCH_SIZE = 32
MAX_LENGTH = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4800, help="training rows of the epoch")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each kind")
    parser.add_argument("--kind", choices=KINDS, help="measure once, here, and print JSON")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/fine_tune.json"))
    options = parser.parse_args()
    if options.kind:
        print(json.dumps(measure(options.kind, options.rows)))
        return
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    for turn in range(options.rounds):
        for kind in KINDS if turn % 2 == 0 else reversed(KINDS):
            found[kind].append(in_own_process(kind, options.rows))
            print(f"round {turn + 1}  {kind:8} {found[kind][-1]}", flush=True)
    rates = {kind: [run["examples_per_second"] for run in runs] for kind, runs in found.items()}
    memory = {kind: [run["peak_rss_mb"] for run in runs] for kind, runs in found.items()}
    result = {
        "rows": options.rows,
        "examples_per_second": {kind: round(statistics.median(values), 1) for kind, values in rates.items()},
        "times_trainer": {
            kind: {
                "median": round(statistics.median(ratios), 2),
                "low": round(min(ratios), 2),
                "high": round(max(ratios), 2),
            }
            for kind in KINDS[1:]
            if (ratios := [ours / theirs for ours, theirs in zip(rates[kind], rates["trainer"], strict=True)])
        },
        "peak_rss_mb": {kind: round(statistics.median(values)) for kind, values in memory.items()},
        "train_loss": {
            kind: round(statistics.median(run["train_loss"] for run in runs), 3) for kind, runs in found.items()
        },
        "rounds": options.rounds,
        "threads": 1,
        "load_average": os.getloadavg()[0],
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "accelerate", "mlflow")},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def in_own_process(kind: str, rows: int) -> dict[str, float]:
    """One measurement in a fresh process on one core."""
    command = [sys.executable, "-m", "benchmarks.fine_tune", "--kind", kind, "--rows", str(rows)]
    cores = os.sched_getaffinity(0)
    one_core = {max(cores)}
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        environment |= {"TOKENIZERS_PARALLELISM": "false", "MLFLOW_TRACKING_URI": f"sqlite:///{cache}/mlflow.db"}
        environment |= {"BERTDYN_CACHE": f"{cache}/cache", "MLFLOW_DISABLE_TELEMETRY": "true"}
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, one_core),
        )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(kind: str, rows: int) -> dict[str, float]:
    """Train for one epoch; examples a second, mean loss, peak memory in MiB."""
    import torch

    from bertdyn.steps.config import FineTuneConfig
    from bertdyn.training.resources import peak_rss_mb

    torch.set_num_threads(1)
    config = FineTuneConfig(
        dataset="sst2",
        data_dir=str(Path(os.environ["BERTDYN_DATA"]).resolve() / "sst2_glue"),
        max_length=MAX_LENGTH,
        max_train_samples=rows,
        max_validation_samples=round(rows * 0.115),
        max_probe_samples=round(rows * 0.034),
        unpadded="false" if kind == "padded" else "true",
        num_train_epochs=1,
        per_device_train_batch_size=BATCH_SIZE,
        mixed_precision="bf16" if torch.cuda.is_available() else "no",
    )
    if kind == "trainer":
        seconds, loss = trainer_epoch(config)
    elif kind in ("padded", "bare"):
        seconds, loss = our_epoch(config)
    else:
        from bertdyn.tracking.runs import open_run

        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            with open_run("fine-tune", run_name="benchmark", tags=config.tags()) as tracker:
                seconds, loss = our_epoch(config, tracker)
    return {"examples_per_second": round(rows / seconds, 2), "train_loss": loss, "peak_rss_mb": round(peak_rss_mb())}


def trainer_epoch(config) -> tuple[float, float]:
    """Seconds and mean loss of `Trainer.train()`."""
    from accelerate import Accelerator
    from accelerate.utils import set_seed
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

    from bertdyn.models.loading import load_model
    from bertdyn.steps.preparation import load_texts

    texts = load_texts(config, Accelerator(cpu=config.mixed_precision == "no"))
    set_seed(config.seed)
    model = load_model("minilm", "classification", label_names=texts.data.label_names)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            TrainingArguments(
                folder,
                num_train_epochs=1,
                per_device_train_batch_size=config.per_device_train_batch_size,
                learning_rate=config.learning_rate,
                weight_decay=config.weight_decay,
                warmup_steps=config.warmup_ratio,
                bf16=config.mixed_precision == "bf16",
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            DataCollatorWithPadding(texts.tokenizer),
            texts.tokens["train"].remove_columns(["index", "length"]),
        )
        started = time.perf_counter()
        result = trainer.train()
        return time.perf_counter() - started, result.training_loss


def our_epoch(config, tracker=None) -> tuple[float, float]:
    """Seconds and mean loss of epoch 1, listeners included if there is a tracker."""
    from bertdyn.steps.fine_tuning import make_job, make_listeners, train_job
    from bertdyn.tracking.tracker import Tracker
    from bertdyn.training.loop import Listener

    with tempfile.TemporaryDirectory() as folder:
        job, _ = make_job(config, tracker or Tracker(Path(folder)))
        clock = {}

        class Start(Listener):
            def on_epoch_start(self, progress):
                clock["start"] = time.perf_counter()

        class End(Listener):
            def on_epoch_end(self, progress):
                clock["end"] = time.perf_counter()

        listeners = make_listeners(job, None) if tracker else []
        progress = train_job(job, [Start(), *listeners, End()])
        return clock["end"] - clock["start"], progress.metrics["train/loss"]


if __name__ == "__main__":
    main()
