"""Which weights these are."""

import hashlib

import torch
from transformers import PreTrainedModel


def weights_fingerprint(model: PreTrainedModel) -> str:
    """SHA-256 over the names and values of all weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
