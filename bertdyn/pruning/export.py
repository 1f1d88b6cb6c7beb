"""A model as one ONNX file with any batch size and sequence length, and how far ONNX runtime is from the model.

The graph takes int64 [batch, sequence]: input_ids, attention_mask, and token_type_ids where the family has them. It
returns what the head is for: logits; start_logits and end_logits; last_hidden_state without a head.

What it computes is the model as it is: in evaluation mode, with its own attention implementation.
"""

import inspect
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bertdyn.files import replacing
from bertdyn.models.loading import HEADS
from bertdyn.models.modes import evaluating
from bertdyn.models.unpadded import is_unpadded

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

MAX_FILE_BYTES = 2**31 - 1
"""What a protobuf message, and so a single ONNX file, can hold."""
EXAMPLE = (2, 8)
"""(batch, sequence) of the traced batch; sizes of 0 and 1 would be taken for constants."""


def input_names(model: PreTrainedModel) -> list[str]:
    """The inputs of `model` that a tokenizer makes: token types only where there is a table of them."""
    names = ["input_ids", "attention_mask"]
    takes_types = "token_type_ids" in inspect.signature(model.forward).parameters
    if takes_types and getattr(model.config, "type_vocab_size", None):
        names.append("token_type_ids")
    return names


def output_names(class_name: str) -> list[str]:
    """What a model of this class, or of this Auto class, is called for."""
    if HEADS["classification"] in class_name:
        return ["logits"]
    return ["start_logits", "end_logits"] if HEADS["question-answering"] in class_name else ["last_hidden_state"]


def export_onnx(model: PreTrainedModel, path: Path) -> None:
    """Write `model` to `path`, weights included; `path` is whole or as it was.

    The model keeps its mode, device and attention implementation.

    Parameters
    ----------
    path
        Of the file to write, `….onnx`.

    Raises
    ------
    ValueError
        If the model runs unpadded, which is hooks around it and no graph, or is too large for one file.
    RuntimeError
        If torch cannot export it: one line with the cause.
    """
    if is_unpadded(model):
        raise ValueError("this model runs unpadded, which ONNX cannot express: load it again, without run_unpadded")
    size = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
    if size > MAX_FILE_BYTES:
        raise ValueError(f"this model has {size / 2**30:.1f} GiB of weights: a single ONNX file holds 2 GiB")
    names = input_names(model)
    example = {name: torch.ones(EXAMPLE, dtype=torch.long, device=model.device) for name in names}
    with replacing(path) as temporary, evaluating(model), torch.no_grad(), _quiet():
        try:
            torch.onnx.export(
                _Outputs(model),
                kwargs=example,
                f=temporary,
                input_names=names,
                output_names=output_names(type(model).__name__),
                dynamic_shapes={name: {0: "batch", 1: "sequence"} for name in names},
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except Exception as error:  # of every part of torch and onnxscript, each with a class of its own
            raise RuntimeError(f"{type(model).__name__} cannot be exported to ONNX: {_cause(error)}") from error


def check_onnx(model: PreTrainedModel, path: Path, batches: Iterable[Mapping[str, Tensor]]) -> float:
    """The largest absolute difference between the outputs of `path` and of `model`.

    Parameters
    ----------
    batches
        Of `input_names`, [batch, sequence] each; choose shapes other than `EXAMPLE`, and padding. Where the model
        takes token types and a batch has none, they are zero, as in the model.
    """
    session = open_session(path)
    names = output_names(type(model).__name__)
    differences = []
    with evaluating(model), torch.inference_mode():
        for batch in batches:
            expected = model(**{name: tensor.to(model.device) for name, tensor in batch.items()})
            for name, found in zip(names, session.run(names, session_inputs(session, batch)), strict=True):
                differences.append((torch.from_numpy(found) - expected[name].cpu()).abs().max())
    return float(torch.stack(differences).max())  # of tensors, which unlike max() hands NaN on


def open_session(path: Path) -> "InferenceSession":
    """`path` in ONNX runtime, on one thread of the CPU."""
    import onnxruntime  # here, since whoever only exports needs none

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def session_inputs(session: "InferenceSession", batch: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """What `session` takes of `batch`, with zeros for token types that it lacks."""
    complete = {"token_type_ids": torch.zeros_like(batch["input_ids"]), **batch}
    return {wanted.name: complete[wanted.name].cpu().numpy() for wanted in session.get_inputs()}


class _Outputs(nn.Module):
    """The model with nothing in and out but tensors of the graph."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.names = output_names(type(model).__name__)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, **types)
        return tuple(outputs[name] for name in self.names)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what every export says: operators of packages that are not there, its future, its optimiser's steps."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _cause(error: BaseException) -> str:
    """What the exporter's explanations go back to, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
