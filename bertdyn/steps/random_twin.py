"""Features of an encoder that has the architecture of an extract run's and random weights: what a probe owes to neither
pretraining nor fine-tuning."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from bertdyn.data.loading import load_data
from bertdyn.data.tokenization import tokenize_parts
from bertdyn.features.extraction import extract_state, make_manifest
from bertdyn.features.store import FeatureStore
from bertdyn.features.texts import texts_of
from bertdyn.features.writing import create_store
from bertdyn.files import cache_folder, new_folder
from bertdyn.models.loading import load_encoder, load_tokenizer
from bertdyn.models.unpadded import can_run_unpadded, run_unpadded
from bertdyn.steps.extract_runs import ExtractRun
from bertdyn.steps.preparation import make_accelerator
from bertdyn.steps.sources import find_states, load_source_data
from bertdyn.tracking.locations import resolve_model

RANDOM_INIT = "random_init"
"""The twin's one state."""


def random_twin(
    run: ExtractRun, *, parts: Sequence[str], rows: Sequence[str], layers: Sequence[int], seed: int
) -> FeatureStore:
    """The same texts of some parts, with the same tokens, seen by random weights.

    Made once: the store is kept in the cache.

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
    if not folder.exists():
        if config.source_run_id:
            location = find_states(config.source_run_id, run.store.states[0])[0].location
            data = load_source_data(config.source_run_id)
        else:
            location = resolve_model(str(config.model_name_or_path))
            data = load_data(config)
        options = {"trust_remote_code": config.trust_remote_code}
        tokenizer = load_tokenizer(config.tokenizer_name or location, **options)
        tokens = tokenize_parts(data, tokenizer, config.max_length, cache_folder("tokens"), config.doc_stride)
        texts = texts_of(data, tokens, list(parts), {part: config.max_samples(part) for part in data.parts})
        torch.manual_seed(seed)
        model = load_encoder(location, from_scratch=True, **options)
        if can_run_unpadded(model):
            run_unpadded(model)
        manifest = make_manifest(
            model,
            texts,
            rows=rows,
            layers=layers,
            dtype=config.dtype,
            label_names=data.label_names,
            fingerprints=run.store.manifest.fingerprints,
        )
        with new_folder(folder) as growing:
            store = create_store(Path(growing), manifest, texts.example_table(), texts.token_pieces(tokenizer))
            accelerator = make_accelerator(config.mixed_precision)
            extract_state(accelerator, model.to(accelerator.device), texts, tokenizer, store, RANDOM_INIT)
    return FeatureStore.open(folder)
