"""What the pruned model costs beside the dense one, measured on what was saved: size, FLOPs, memory, latency; ONNX."""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from transformers import PreTrainedModel

from bertdyn.data.text_data import TextData
from bertdyn.models.anatomy import max_length
from bertdyn.models.loading import AUTO_CLASSES
from bertdyn.pruning.cost import flop_costs, parameter_costs
from bertdyn.pruning.export import check_onnx, export_onnx
from bertdyn.pruning.fresh_process import in_fresh_process
from bertdyn.pruning.latency import onnx_latency, random_batches, torch_latency
from bertdyn.pruning.shape import shape_of
from bertdyn.steps.prune_config import PruneConfig
from bertdyn.steps.prune_source import load_state
from bertdyn.tracking.tracker import Tracker

logger = logging.getLogger(__name__)

MEMORY_SHAPE = (16, 64)
"""Texts and tokens of the batch that is run in a fresh process."""
CHECK_SHAPES = ((1, 7), (5, 40))
"""Of the batches with which the ONNX file is checked."""
ONNX = "onnx/model.onnx"


class Deployment(NamedTuple):
    """Of the dense and the pruned model."""

    costs: pd.DataFrame
    """One row a model: parameters, FLOPs, bytes; of a process of its own, seconds to load, peak memory, and how much of
    it is the model's, weights and activations (the rest is Python and torch)."""
    latency: pd.DataFrame
    """As `bertdyn.pruning.latency` makes it; empty where nothing was timed."""
    reload_difference: float
    """Largest difference of outputs between this process and a fresh one without bertdyn."""
    onnx_difference: float | None
    """The same of ONNX runtime; None without an export."""
    onnx_problem: str
    """Why there is no ONNX file, "" if there is one or none was asked for."""


def deploy(config: PruneConfig, dense: str, pruned: Path, tracker: Tracker, data: TextData) -> Deployment:
    """Load both models from folders, as a user will, and measure them.

    Parameters
    ----------
    dense
        What `from_pretrained` takes: a hub id, or a folder, whatever the type of its files.
    pruned
        Folder of a checkpoint.
    tracker
        Receives the ONNX file.
    data
        What the models are for.
    """
    with tempfile.TemporaryDirectory(prefix="bertdyn-dense-") as folder:
        load_state(dense, config, data).save_pretrained(folder)
        return _deploy(config, {"dense": Path(folder), "pruned": pruned}, tracker, data)


def _deploy(config: PruneConfig, folders: dict[str, Path], tracker: Tracker, data: TextData) -> Deployment:
    models = {name: load_state(str(folder), config, data) for name, folder in folders.items()}
    rows, differences = [], {}
    for name, folder in folders.items():
        row, differences[name] = _costs(name, models[name], folder, data.task, config)
        rows.append(row)
    tables, onnx_difference, problem = [], None, ""
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])) if config.shapes() else ():
        moved = {name: model.to(device) for name, model in models.items()}  # type: ignore[arg-type]
        tables.append(torch_latency(moved, config.shapes(), rounds=config.latency_rounds, seed=config.seed))
    models = {name: model.cpu() for name, model in models.items()}
    if config.export_onnx:
        try:
            onnx_difference, timed = _onnx(config, models, tracker)
            tables += [] if timed is None else [timed]
        except (
            RuntimeError,
            ValueError,
        ) as error:  # the exporter does not know every operator (circular convolution's transforms)
            problem = str(error)
            logger.warning("no ONNX file: %s", problem)
    latency = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    return Deployment(pd.DataFrame(rows), latency, differences["pruned"], onnx_difference, problem)


def fitting(model: PreTrainedModel, shapes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """(texts, tokens) with no more tokens than the model has positions for."""
    return [(texts, min(tokens, max_length(model.config))) for texts, tokens in shapes]


def _costs(
    name: str, model: PreTrainedModel, folder: Path, task: str, config: PruneConfig
) -> tuple[dict[str, Any], float]:
    """The row of one model, and how far a fresh process is from this one."""
    shape = shape_of(model)
    [batch] = random_batches(model.config, fitting(model, [MEMORY_SHAPE]), seed=config.seed)
    # The pruned model's folder has our own code; what came with the source is run by nobody who did not ask for it.
    fresh = in_fresh_process(folder, batch, AUTO_CLASSES[task].__name__, with_bertdyn=name == "dense")
    with torch.inference_mode():
        output = model(**batch)
    mine = [output[key] for key in ("logits", "start_logits", "end_logits") if key in output]
    difference = max(float((a - b).abs().max()) for a, b in zip(mine, fresh.outputs, strict=True))
    row = {
        "model": name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "encoder_parameters": int(parameter_costs(shape).of(shape)),
        "encoder_flops": flop_costs(shape, length=config.cost_length).of(shape),
        "flops_length": config.cost_length,
        "file_bytes": fresh.weight_bytes,
        "load_seconds": fresh.load_seconds,
        "peak_memory_mb": fresh.peak_memory_mb,
        "model_memory_mb": fresh.peak_memory_mb - fresh.idle_memory_mb,
    }
    return row, difference


def _onnx(
    config: PruneConfig, models: dict[str, PreTrainedModel], tracker: Tracker
) -> tuple[float, pd.DataFrame | None]:
    """Export the pruned model for good and the dense one to be timed; the largest difference from PyTorch."""
    export_onnx(models["pruned"], tracker.folder / ONNX)
    batches = random_batches(models["pruned"].config, fitting(models["pruned"], CHECK_SHAPES), seed=config.seed)
    difference = check_onnx(models["pruned"], tracker.folder / ONNX, batches)
    tracker.publish(ONNX)
    if not config.shapes():
        return difference, None
    with tempfile.TemporaryDirectory(prefix="bertdyn-onnx-") as folder:
        dense = Path(folder) / "dense.onnx"
        export_onnx(models["dense"], dense)
        files = {"dense": dense, "pruned": tracker.folder / ONNX}
        timed = onnx_latency(
            files, models["dense"].config, config.shapes(), rounds=config.latency_rounds, seed=config.seed
        )
    return difference, timed
