"""Dictionaries on disk, in the format of SAELens, so that it and what builds on it can open them.

    <folder>/
        cfg.json                    architecture and sizes; what SAELens does not know stands in metadata.bertdyn
        sae_weights.safetensors     W_enc [width, latents], b_enc, W_dec [latents, width], b_dec; jumprelu: threshold
        standardisation.safetensors mean, scale [width] of the rows of training; threshold; not for SAELens

`SAE.load_from_disk(folder)` of SAELens 6 encodes and decodes as `bertdyn.sae.dictionary` does. Its names for the
activations are "topk", "standard" (relu) and "jumprelu": what batch_topk is once its threshold is found.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bertdyn.errors import InputError
from bertdyn.files import replacing, write_json
from bertdyn.sae.dictionary import Dictionary

ARCHITECTURES = {"topk": "topk", "batch_topk": "jumprelu", "relu": "standard"}
"""What SAELens calls them, by activation."""
CONFIG, WEIGHTS, STANDARDISATION = "cfg.json", "sae_weights.safetensors", "standardisation.safetensors"
SAELENS_FORMAT = "6.0.0"
"""The version of SAELens whose cfg.json this is; without one it takes the file for an older format."""


def save_dictionary(folder: Path, dictionary: Dictionary, metadata: Mapping[str, Any]) -> None:
    """Write a dictionary, on whatever device it is; takes the place of the folder, whole or not at all.

    Parameters
    ----------
    metadata
        Whatever belongs to it (model, state, layer, measures), as JSON can hold it. `load_metadata` returns it, SAELens
        has it as `sae.cfg.metadata.bertdyn["metadata"]`.

    Raises
    ------
    InputError
        If the dictionary is none: values that are not finite, shapes that do not fit, an unknown activation.
    """
    where = f"the dictionary for {folder}"
    config = _config(where, dictionary.activation, dictionary.k, dictionary.width, dictionary.num_latents)
    own = {"activation": dictionary.activation, "k": dictionary.k, "metadata": dict(metadata)}
    config["metadata"] = {"sae_lens_version": SAELENS_FORMAT, "sae_lens_training_version": None, "bertdyn": own}
    files = _tensors(dictionary)
    _check_tensors(where, files, config)
    _check_values(where, dictionary)
    with replacing(folder) as temporary:
        temporary.mkdir()
        for name, tensors in files.items():
            save_file({key: _contiguous(value) for key, value in tensors.items()}, temporary / name)
        write_json(temporary / CONFIG, config)


def load_dictionary(folder: Path) -> Dictionary:
    """The dictionary that `save_dictionary` wrote, bit for bit, on the CPU.

    Raises
    ------
    InputError
        If there is none, a part of it is missing or damaged, or the parts do not fit each other.
    """
    config, own = _read_config(folder)
    files = {name: _read_tensors(folder / name) for name in (WEIGHTS, STANDARDISATION)}
    _check_tensors(str(folder), files, config)
    weights, standardisation = files[WEIGHTS], files[STANDARDISATION]
    dictionary = Dictionary(
        activation=own["activation"],
        k=own["k"],
        encoder=weights["W_enc"],
        encoder_bias=weights["b_enc"],
        decoder=weights["W_dec"],
        decoder_bias=weights["b_dec"],
        **standardisation,
    )
    _check_values(str(folder), dictionary)
    if "threshold" in weights and not torch.equal(weights["threshold"], _strict_threshold(dictionary)):
        raise InputError(f"{folder}: {WEIGHTS} and {STANDARDISATION} have different thresholds; export it again")
    return dictionary


def load_metadata(folder: Path) -> dict[str, Any]:
    """What was given to `save_dictionary`.

    Raises
    ------
    InputError
        If there is no dictionary, or its cfg.json is damaged.
    """
    return _read_config(folder)[1]["metadata"]


def _config(where: str, activation: str, k: int, width: int, latents: int) -> dict[str, Any]:
    """cfg.json without its metadata."""
    if activation not in tuple(ARCHITECTURES):
        raise InputError(f"{where}: unknown activation {activation!r}; accepted are {', '.join(ARCHITECTURES)}")
    config = {
        "architecture": ARCHITECTURES[activation],
        "d_in": width,
        "d_sae": latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
    }
    return config | ({"k": k, "rescale_acts_by_decoder_norm": False} if activation == "topk" else {})


def _tensors(dictionary: Dictionary) -> dict[str, dict[str, Tensor]]:
    """What stands in each file."""
    weights = {
        "W_enc": dictionary.encoder,
        "b_enc": dictionary.encoder_bias,
        "W_dec": dictionary.decoder,
        "b_dec": dictionary.decoder_bias,
    }
    if dictionary.activation == "batch_topk":
        weights["threshold"] = _strict_threshold(dictionary)
    standardisation = {name: getattr(dictionary, name) for name in ("mean", "scale", "threshold")}
    return {WEIGHTS: weights, STANDARDISATION: standardisation}


def _strict_threshold(dictionary: Dictionary) -> Tensor:
    """[latents]: SAELens wants activations above a threshold, we at or above: the next smaller number says the same."""
    below = torch.nextafter(dictionary.threshold, torch.full_like(dictionary.threshold, -torch.inf))
    return below.expand(dictionary.num_latents)


def _contiguous(tensor: Tensor) -> Tensor:
    """A copy that shares its memory with no other, as the file format wants it."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _read_config(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """cfg.json and what of it is ours."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not an exported dictionary: there is no such folder")
    missing = [name for name in (CONFIG, WEIGHTS, STANDARDISATION) if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{folder} is not a whole exported dictionary: {', '.join(missing)} missing; export it again")
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        own = {name: config["metadata"]["bertdyn"][name] for name in ("activation", "k", "metadata")}
        architecture, width, latents = config["architecture"], config["d_in"], config["d_sae"]
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); export it again") from error
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} lacks a part ({error}); accepted is what save_dictionary wrote") from error
    if architecture not in tuple(ARCHITECTURES.values()):
        accepted = ", ".join(ARCHITECTURES.values())
        raise InputError(f"{path}: unknown architecture {architecture!r}; accepted are {accepted}")
    for name, expected in _config(str(path), own["activation"], own["k"], width, latents).items():
        found = config.get(name)
        if found != expected:
            raise InputError(f"{path}: {name} is {found!r}; with {own['activation']} it must be {expected!r}")
    return config, own


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read ({error}); export it again") from error


def _check_tensors(where: str, files: Mapping[str, Mapping[str, Tensor]], config: Mapping[str, Any]) -> None:
    """That each file has the tensors that the configuration promises: float32, of the right shape, finite."""
    width, latents = config["d_in"], config["d_sae"]
    weights = {"W_enc": (width, latents), "b_enc": (latents,), "W_dec": (latents, width), "b_dec": (width,)}
    if config["architecture"] == "jumprelu":
        weights["threshold"] = (latents,)
    expected = {WEIGHTS: weights, STANDARDISATION: {"mean": (width,), "scale": (width,), "threshold": ()}}
    for file, shapes in expected.items():
        if files[file].keys() != shapes.keys():
            raise InputError(f"{where}: {file} has {sorted(files[file])}, not {sorted(shapes)}")
        for name, shape in shapes.items():
            tensor = files[file][name]
            if (tuple(tensor.shape), tensor.dtype) != (shape, torch.float32):
                found = f"{tensor.dtype} {tuple(tensor.shape)}"
                raise InputError(f"{where}: {name} is {found}, not torch.float32 {shape} as {CONFIG} says")
            if not tensor.isfinite().all():
                raise InputError(f"{where}: {name} has values that are not finite; did the training diverge?")


def _check_values(where: str, dictionary: Dictionary) -> None:
    """That k, threshold and scale are possible ones for its activation."""
    least, most = (0, 0) if dictionary.activation == "relu" else (1, dictionary.num_latents)
    if not isinstance(dictionary.k, int) or not least <= dictionary.k <= most:
        raise InputError(f"{where}: k is {dictionary.k!r}; with {dictionary.activation} it is from {least} to {most}")
    if dictionary.activation != "batch_topk" and dictionary.threshold != 0:
        raise InputError(f"{where}: threshold is {dictionary.threshold:g}; with {dictionary.activation} it is 0")
    if (dictionary.scale <= 0).any():
        raise InputError(f"{where}: scale must be above 0; its smallest value is {dictionary.scale.min():g}")
