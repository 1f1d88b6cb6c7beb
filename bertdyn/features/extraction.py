"""From a model and tokenised texts to rows of a feature store.

The texts go through the model in chunks of neighbouring rows, a few tens of megabytes of features each: a chunk is
what one process computes, what is copied from a GPU at once, what is written in one piece, and what a kill can
cost. Inside a chunk the texts are sorted by length. What a row holds depends on nothing but its chunk, so that the
finished store is the same, byte for byte, whatever was interrupted and however many processes wrote it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bertdyn.data.batching import MODEL_INPUTS, Collator, model_inputs
from bertdyn.errors import InputError
from bertdyn.features.store import ArrayInfo, FeatureStore, Manifest, kind_of
from bertdyn.features.texts import TokenisedTexts
from bertdyn.features.writing import StateWriter, begin_state, finish_state
from bertdyn.models.anatomy import anatomy_of
from bertdyn.models.loading import HEADS
from bertdyn.models.recording import UNITS, Recorded, check_units, recording

BYTES_PER_CHUNK = 64 * 2**20
TOKENS_PER_CHUNK = 2**15
"""Where features are small, this is what a kill can cost; and a part should have enough chunks for all processes."""
BAR_FROM = 20_000
"""Tokens from which on a progress bar is worth its line."""


class Chunk(NamedTuple):
    """Neighbouring sequences that are computed and written together."""

    sequences: np.ndarray
    first_token_row: int
    num_tokens: int
    first_example_row: int
    num_examples: int

    @property
    def name(self) -> str:
        return f"{self.sequences[0]:09d}-{self.sequences[-1]:09d}"


def make_manifest(
    model: PreTrainedModel,
    texts: TokenisedTexts,
    *,
    sites: Sequence[str] = ("hidden",),
    rows: Sequence[str],
    layers: Sequence[int],
    dtype: str,
    label_names: Sequence[str],
    fingerprints: Mapping[str, str],
) -> Manifest:
    """What a store of these texts has to hold.

    Parameters
    ----------
    sites
        Of `models.config.SITES`.
    rows
        Of "first", "mean", "tokens".
    layers
        0 to L; of what embeddings do not have, only those above 0.
    dtype
        "float32" or "float16".
    label_names
        Of the examples' labels.
    fingerprints
        What the rows are made from.
    """
    anatomy, arrays = anatomy_of(model), {}
    for site in sites:
        of = [layer for layer in layers if layer > 0 or site == "hidden"]
        if site in UNITS and site != "attention":
            check_units(anatomy, site, of)
            # A shared layer is the last one there is, whatever its number.
            physical = [anatomy.layers[min(layer, len(anatomy.layers)) - 1] for layer in of]
            widths = [len(cast(Tensor, parts[UNITS[site]].bias)) for parts in physical]
        else:
            widths = [0 if site == "attention" else model.config.hidden_size] * len(of)
        for way in ["tokens"] if site == "attention" else rows:
            arrays[kind_of(site, way)] = ArrayInfo(site, way, dtype, of, widths)
    by_token = any(info.rows == "tokens" for info in arrays.values())
    return Manifest(
        arrays=arrays,
        depth=anatomy.depth,
        num_examples=len(texts.examples),
        num_tokens=int(texts.lengths.sum()) if by_token else 0,
        num_classes=(model.config.num_labels or 0) if HEADS["classification"] in type(model).__name__ else 0,
        label_names=list(label_names),
        fingerprints=dict(fingerprints),
    )


def plan_chunks(texts: TokenisedTexts, store: FeatureStore) -> list[Chunk]:
    """All sequences in chunks of about `BYTES_PER_CHUNK` or `TOKENS_PER_CHUNK`; a function of texts and arrays alone.

    A batch lies within a chunk, so that very wide features make it smaller than the asked batch size. Where no array
    has rows by token, only first windows are read, and so only they are planned.
    """
    manifest = store.manifest
    by_token = manifest.num_tokens > 0
    sequences = np.arange(len(texts.lengths)) if by_token else np.flatnonzero(texts.is_first)
    lengths = texts.lengths[sequences]
    rows = manifest.num_tokens if by_token else manifest.num_examples
    bytes_per_token = manifest.bytes_per_state() / max(1, rows) / (1 if by_token else lengths.mean())
    tokens_per_chunk = min(TOKENS_PER_CHUNK, BYTES_PER_CHUNK / bytes_per_token)
    cuts = np.flatnonzero(np.diff(np.cumsum(lengths) // tokens_per_chunk)) + 1
    starts = np.cumsum(texts.lengths) - texts.lengths
    chunks = []
    for chosen in np.split(sequences, cuts):
        owners = texts.owner[chosen[texts.is_first[chosen]]]  # none, in a chunk of later windows only
        first_example = int(owners[0]) if len(owners) else 0
        num_tokens = int(texts.lengths[chosen].sum()) if by_token else 0
        chunks.append(Chunk(chosen, int(starts[chosen[0]]), num_tokens, first_example, len(owners)))
    return chunks


@torch.inference_mode()
def extract_state(
    accelerator: Accelerator,
    model: PreTrainedModel,
    texts: TokenisedTexts,
    tokenizer: PreTrainedTokenizerBase,
    store: FeatureStore,
    state: str,
    *,
    folder: str | None = None,
    fingerprint: str = "",
    batch_size: int = 64,
    resume: bool = False,
) -> None:
    """Write one state into `store`. Every process calls this; each computes and writes its share.

    Parameters
    ----------
    folder
        Of the state in the store. Default: its name.
    fingerprint
        Of the model, for the manifest.
    batch_size
        Sequences in a forward pass.
    resume
        Keep what an interrupted attempt at this state has written.

    Raises
    ------
    InputError
        If a value is too large for the store's type.
    FloatingPointError
        If a value is not finite.
    """
    folder = folder or state
    if accelerator.is_main_process:
        begin_state(store, folder, fingerprint, resume=resume)
    accelerator.wait_for_everyone()
    writer = StateWriter(store, folder)
    missing = [chunk for chunk in plan_chunks(texts, store) if chunk.name not in writer.done]
    accelerator.wait_for_everyone()  # nobody marks a chunk before everybody has read the marks
    mine = missing[accelerator.process_index :: accelerator.num_processes]
    batches = [_batches(chunk, texts.lengths, batch_size) for chunk in mine]
    inputs = [name for name in texts.sequences.column_names if name in MODEL_INPUTS]
    loader = DataLoader(
        texts.sequences.select_columns(inputs),  # type: ignore[arg-type]  # a map-style dataset with __getitems__
        batch_sampler=[batch.tolist() for of_chunk in batches for batch in of_chunk],
        collate_fn=Collator(tokenizer, token_rows=True),
        generator=torch.Generator(),  # its own: else every pass would draw from, and so change, torch's global state
        pin_memory=accelerator.device.type == "cuda",
    )
    wanted = {info.site: info.layers for info in store.manifest.arrays.values()}
    total = sum(int(texts.lengths[chunk.sequences].sum()) for chunk in mine)
    quiet = total < BAR_FROM or not accelerator.is_main_process
    with (
        _evaluating(model),
        _without_onednn(accelerator),
        recording(model, wanted) as record,
        tqdm(total=total, unit="tokens", unit_scale=True, desc=f"extract {state}", disable=quiet) as bar,
    ):
        loaded, rows = iter(loader), _ChunkRows(store.manifest, texts, mine, accelerator.device)
        for chunk, of_chunk in zip(mine, batches, strict=True):
            rows.start(chunk)
            for sequences in of_chunk:
                batch = send_to_device(model_inputs(next(loaded)), accelerator.device, non_blocking=True)
                with accelerator.autocast():
                    rows.place(record(batch), sequences)
                bar.update(int(texts.lengths[sequences].sum()))
            rows.write(writer, state)
            writer.finished(chunk.name)
    writer.sync()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        finish_state(store, state, folder, fingerprint)
    accelerator.wait_for_everyone()


class _ChunkRows:
    """The rows of one chunk after another, on the device that computes them, in the order and the type of the store.

    Their memory is allocated once, for the largest of `chunks`: tensors that come and go between those of the forward
    passes leave holes in the heap.
    """

    def __init__(
        self, manifest: Manifest, texts: TokenisedTexts, chunks: Sequence[Chunk], device: torch.device
    ) -> None:
        self.texts, self.arrays, self.lengths = texts, manifest.arrays, texts.lengths
        self.memory: dict[tuple[str, int], Tensor] = {}
        num_examples = max((chunk.num_examples for chunk in chunks), default=0)
        num_tokens = max((chunk.num_tokens for chunk in chunks), default=0)
        for kind, info in manifest.arrays.items():
            rows = num_tokens if info.rows == "tokens" else num_examples
            for layer, width in zip(info.layers, info.widths, strict=True):
                shape = (rows, width) if width else (rows,)
                self.memory[kind, layer] = torch.empty(shape, dtype=getattr(torch, info.dtype), device=device)
        self.logits_memory = torch.empty(num_examples, manifest.num_classes, device=device)

    def start(self, chunk: Chunk) -> None:
        """The rows of `chunk` come now."""
        self.chunk, texts = chunk, self.texts
        starts = np.cumsum(texts.lengths[chunk.sequences]) - texts.lengths[chunk.sequences]
        self.starts = dict(zip(chunk.sequences.tolist(), starts.tolist(), strict=True))
        first = chunk.sequences[texts.is_first[chunk.sequences]]
        self.example_rows = {int(s): int(texts.owner[s]) - chunk.first_example_row for s in first}
        self.buffers = {
            (kind, layer): memory[: chunk.num_tokens if self.arrays[kind].rows == "tokens" else chunk.num_examples]
            for (kind, layer), memory in self.memory.items()
        }
        self.logits = self.logits_memory[: chunk.num_examples]

    def place(self, recorded: Recorded, sequences: np.ndarray) -> None:
        """Put one batch, of these `sequences`, where it belongs."""
        packing = recorded.packing
        firsts = [i for i, sequence in enumerate(sequences) if sequence in self.example_rows]
        starts = _to_device([[self.starts[sequence] for sequence in sequences]], packing.rows.device)[0]
        rows_of_firsts = [self.example_rows[sequences[i]] for i in firsts]
        lengths_of_firsts = self.lengths[sequences][firsts].tolist()
        in_batch, example_rows, lengths = _to_device([firsts, rows_of_firsts, lengths_of_firsts], packing.rows.device)
        text, position = packing.rows // packing.shape[1], packing.rows % packing.shape[1]
        token_rows, first_tokens = starts[text] + position, packing.firsts[in_batch]
        for (kind, layer), buffer in self.buffers.items():
            info = self.arrays[kind]
            values = recorded.values[info.site, layer]
            if info.rows == "tokens":
                buffer.index_copy_(0, token_rows, values.to(buffer.dtype))
            elif info.rows == "first":
                rows = values.index_select(0, first_tokens)
                buffer.index_copy_(0, example_rows, rows.to(buffer.dtype))
            else:
                rows = packing.unpack(values.float())[in_batch].sum(dim=1) / lengths[:, None]
                buffer.index_copy_(0, example_rows, rows.to(buffer.dtype))
        if self.logits.shape[1]:
            self.logits.index_copy_(0, example_rows, recorded.output.logits[in_batch].float())

    def write(self, writer: StateWriter, state: str) -> None:
        """Check the rows and hand them over."""
        for (kind, layer), buffer in self.buffers.items():
            _check_finite(buffer, kind, layer, state)
            by_token = self.arrays[kind].rows == "tokens"
            first_row = self.chunk.first_token_row if by_token else self.chunk.first_example_row
            writer.write(kind, layer, first_row, buffer.cpu().numpy())
        if self.logits.shape[1]:
            writer.write_logits(self.chunk.first_example_row, self.logits.cpu().numpy())


def _to_device(numbers: list[list[int]], device: torch.device) -> Tensor:
    """Rows of whole numbers, without waiting for a GPU."""
    tensor = torch.tensor(numbers, dtype=torch.long)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _check_finite(rows: Tensor, kind: str, layer: int, state: str) -> None:
    if rows.isfinite().all():
        return
    where = f"{kind} of layer {layer}, {state}"
    if rows.dtype == torch.float16 and not rows.isnan().any():
        largest = torch.finfo(torch.float16).max
        raise InputError(f"--dtype float16: {where} has values beyond {largest:,.0f}; accepted here: float32")
    raise FloatingPointError(f"features are not finite: {where}")


def _batches(chunk: Chunk, lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """The sequences of a chunk, longest first, in batches."""
    order = chunk.sequences[np.argsort(-lengths[chunk.sequences], kind="stable")]
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


@contextmanager
def _without_onednn(accelerator: Accelerator) -> Iterator[None]:
    """Without it where MKL multiplies, on a CPU in float32.

    There it computes activation functions only, no faster than PyTorch, and keeps a kernel for every number of tokens
    that it met; those lie between the tensors in the heap, and the process would grow with the number of batches.
    """
    multiplies = accelerator.device.type != "cpu" or accelerator.mixed_precision != "no"
    if multiplies or not torch.backends.mkl.is_available():
        yield
        return
    enabled, _, _, precision = torch.backends.mkldnn.set_flags(False)
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(enabled, _fp32_precision=precision)


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
