"""What all linear probes have in common: which ones are fitted, how features are standardised, what comes out."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


class Fits(NamedTuple):
    """One probe a position; [probes] each."""

    targets: Tensor
    """Number of the target."""
    sets: Tensor
    """Number of the set of training rows."""
    penalties: Tensor
    """Inverse penalty: scikit-learn's C, and 1 / alpha of ridge."""


class LinearProbes(NamedTuple):
    """Probes that say `features @ weights + bias`, of features as they are (standardising is in the weights)."""

    weights: Tensor
    """[probes, width, outputs]"""
    bias: Tensor
    """[probes, outputs]"""

    def scores(self, features: Tensor) -> Tensor:
        """[rows, probes, outputs] of [rows, width]."""
        probes, width, outputs = self.weights.shape
        products = features @ self.weights.permute(1, 0, 2).reshape(width, probes * outputs)
        return products.view(-1, probes, outputs) + self.bias

    def only(self, chosen: Tensor | slice) -> "LinearProbes":
        """Some of them."""
        return LinearProbes(self.weights[chosen], self.bias[chosen])

    def of_uncentred(self, mean: Tensor) -> "LinearProbes":
        """The same probes for features that `mean` [width] was not taken from, in float64."""
        weights = self.weights.double()
        return LinearProbes(weights, self.bias.double() - torch.einsum("w,pwo->po", mean.double(), weights))


def centred(features: Tensor) -> tuple[Tensor, Tensor]:
    """Features less their mean, and the mean [width] in float64.

    Layer outputs have means far beyond their standard deviations, and a product of such features with weights would
    lose the difference in float32. The mean of all rows changes no probe: each has an intercept of its own.
    """
    mean = features.double().mean(dim=0)
    return (features.double() - mean).to(features.dtype), mean


def save_probes(path: Path, probes: Mapping[str, "LinearProbes"], about: Mapping[str, str]) -> None:
    """Write single probes, by name, as safetensors: `<name>/weight` [width, outputs] and `<name>/bias` [outputs].

    Parameters
    ----------
    about
        What else to know, such as the names of the classes; the file's metadata.
    """
    tensors = {
        f"{name}/{part}": values[0].float().cpu().contiguous()
        for name, probe in probes.items()
        for part, values in (("weight", probe.weights), ("bias", probe.bias))
    }
    save_file(tensors, path, metadata=dict(about))


def load_probes(path: Path) -> dict[str, "LinearProbes"]:
    """Single probes by name, as `save_probes` wrote them: `load_probes(path)["best/layer_06"].scores(features)`."""
    tensors = load_file(path)
    names = dict.fromkeys(name.rpartition("/")[0] for name in tensors)
    return {name: LinearProbes(tensors[f"{name}/weight"][None], tensors[f"{name}/bias"][None]) for name in names}


class Scaling(NamedTuple):
    """Mean and standard deviation of each feature over each set of training rows; [sets, width] each."""

    mean: Tensor
    std: Tensor


def scaling_of(features: Tensor, training: Tensor) -> Scaling:
    """As scikit-learn's `StandardScaler`: a feature that is constant has the scale 1.

    Parameters
    ----------
    features
        [rows, width]
    training
        [rows, sets], bool.
    """
    share = training.to(features.dtype)
    share = (share / share.sum(dim=0)).T
    # From the mean, so that rounding is small beside the variance; what is the same in all rows has none then.
    origin = features.mean(dim=0)
    shifted = features - origin
    mean = share @ shifted
    variance = (share @ shifted.square() - mean.square()).clamp(min=0)
    noise = torch.finfo(features.dtype).eps * len(features) * mean.square()
    return Scaling(origin + mean, torch.where(variance > noise, variance, 1).sqrt())
