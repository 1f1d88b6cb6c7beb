"""What the dynamics cost: steps with and without them, in turn, on the same batches.

    python -m benchmarks.dynamics --output benchmarks/results/dynamics.json

One process, one thread, MiniLM, batches of 32 synthetic sentences. Compared is the time of a step
of the training loop with gradient norms accumulated and of one without; both clip, since clipping
needs the norms anyway. The end of an epoch (norms in float64) is timed apart and spread over the
steps of an SST-2 epoch of 195 steps.
"""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path

import torch
import transformers

from bertdyn.data.synthetic import generate
from bertdyn.models.loading import load_model, load_tokenizer
from bertdyn.training.config import TrainingConfig
from bertdyn.training.dynamics import Dynamics
from bertdyn.training.gradients import clip_gradients, tensor_norms
from bertdyn.training.loop import Progress
from bertdyn.training.optimization import make_optimizer

STEPS_OF_AN_EPOCH = 195


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=60, help="steps of each kind, alternating")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/dynamics.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = load_model("minilm", "classification", label_names=["negative", "positive"]).train()
    tokenizer = load_tokenizer("minilm")
    texts = generate(32 * 8, 0, "train")
    batches = []
    for start in range(0, len(texts), 32):
        rows = texts.iloc[start : start + 32]
        inputs = dict(tokenizer(rows["text"].tolist(), padding=True, return_tensors="pt"))
        batches.append(inputs | {"labels": torch.tensor(rows["label"].to_numpy())})
    optimizer = make_optimizer(model, TrainingConfig(learning_rate=1e-5))
    parameters = list(model.parameters())
    dynamics, progress = Dynamics(model), Progress(epoch=1, history=[{}, {}])
    dynamics.on_epoch_start(progress)

    def step(batch: dict, with_dynamics: bool) -> float:
        started = time.perf_counter()
        model(**batch).loss.backward()
        norms = tensor_norms(parameters)
        clip_gradients(parameters, norms, 1.0)
        if with_dynamics:
            dynamics.on_gradients(progress, norms)
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - started

    for batch in batches:
        step(batch, True)
    pairs = []
    for i in range(options.pairs):
        batch = batches[i % len(batches)]
        order = (True, False) if i % 2 else (False, True)
        seconds = {with_dynamics: step(batch, with_dynamics) for with_dynamics in order}
        pairs.append((seconds[True], seconds[False]))
    ends = []
    for _ in range(5):
        dynamics.on_epoch_start(progress)
        dynamics.on_gradients(progress, torch.ones(len(parameters)))
        started = time.perf_counter()
        dynamics.on_epoch_end(progress)
        ends.append(time.perf_counter() - started)
    plain = statistics.median(without for _, without in pairs)
    per_step = statistics.median(1000 * (a - b) for a, b in pairs)
    end = statistics.median(ends)
    result = {
        "step_ms_without": round(1000 * plain, 2),
        "added_ms_per_step": round(per_step, 3),
        "epoch_end_ms": round(1000 * end, 1),
        "share_of_step_time_percent": round(100 * (per_step / 1000 + end / STEPS_OF_AN_EPOCH) / plain, 2),
        "pairs": options.pairs,
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
