"""Features of an encoder that has the architecture of an extract run's and random weights: what a probe owes to neither
pretraining nor fine-tuning."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list

from bertdyn.features.extraction import extract_state, make_manifest
from bertdyn.features.store import FeatureStore
from bertdyn.features.texts import texts_of
from bertdyn.features.writing import create_store
from bertdyn.files import cache_folder, new_folder
from bertdyn.models.loading import load_encoder
from bertdyn.models.unpadded import can_run_unpadded, run_unpadded
from bertdyn.steps.extract_runs import ExtractRun, load_run_texts
from bertdyn.steps.preparation import make_accelerator

RANDOM_INIT = "random_init"
"""The twin's one state."""


def random_twin(
    run: ExtractRun, *, parts: Sequence[str], rows: Sequence[str], layers: Sequence[int], seed: int
) -> FeatureStore:
    """The same texts of some parts, with the same tokens, seen by random weights.

    Made once: the store is kept in the cache. With several processes, each calls this and makes its share.

    Parameters
    ----------
    rows
        Of "first", "mean", "tokens".

    Raises
    ------
    InputError
        If the data or the model of the extract run cannot be read any more.
    """
    config = run.config
    key = json.dumps([run.run_id, *parts, *rows, *layers, seed])
    folder = cache_folder("random_init") / hashlib.sha256(key.encode()).hexdigest()[:16]
    accelerator = make_accelerator(config.mixed_precision)  # before anything is broadcast: else there is one process
    if not broadcast_object_list([folder.exists()])[0]:
        source = load_run_texts(run)
        limits = {part: config.max_samples(part) for part in source.data.parts}
        texts = texts_of(source.data, source.tokens, list(parts), limits)
        torch.manual_seed(seed)
        model = load_encoder(source.location, from_scratch=True, trust_remote_code=config.trust_remote_code)
        if can_run_unpadded(model):
            run_unpadded(model)
        manifest = make_manifest(
            model,
            texts,
            rows=rows,
            layers=layers,
            dtype=config.dtype,
            label_names=source.data.label_names,
            fingerprints=run.store.manifest.fingerprints,  # load_run_texts says that they are
        )
        with new_folder(folder) if accelerator.is_main_process else nullcontext("") as made:
            growing = Path(broadcast_object_list([str(made)])[0])
            if accelerator.is_main_process:
                create_store(growing, manifest, texts.example_table(), texts.token_pieces(source.tokenizer))
            accelerator.wait_for_everyone()
            store = FeatureStore.open(growing)
            extract_state(accelerator, model.to(accelerator.device), texts, source.tokenizer, store, RANDOM_INIT)
        accelerator.wait_for_everyone()
    return FeatureStore.open(folder)
