"""Exported dictionaries in SAELens itself, in an environment of its own: its requirements are not to be ours."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

from bertdyn.sae.config import ACTIVATIONS
from bertdyn.sae.dictionary import Dictionary, decode, encode
from bertdyn.sae.export import save_dictionary

SAELENS = "sae-lens==6.54.12"
WIDTH, LATENTS, ROWS = 96, 512, 300
THRESHOLD = 2.0
THEIRS = """
import sys
from pathlib import Path
import numpy as np
import torch
from sae_lens import SAE

work = Path(sys.argv[1])
rows = torch.from_numpy(np.load(work / "rows.npy"))
for activation in sys.argv[2:]:
    sae = SAE.load_from_disk(work / activation)
    with torch.inference_mode():
        codes = sae.encode(rows)
        np.savez(work / f"{activation}.npz", codes=codes, decoded=sae.decode(codes), output=sae(rows),
                 architecture=sae.cfg.architecture(), layer=sae.cfg.metadata.bertdyn["metadata"]["layer"])
"""


@pytest.fixture(scope="session")
def saelens_python(tmp_path_factory) -> Path:
    """The interpreter of a new environment that has SAELens, and the same torch as this one."""
    folder = tmp_path_factory.mktemp("saelens")
    python = folder / "bin" / "python"
    # uv does not read pip's settings: where pip finds wheels in a folder (torch for the CPU), tell uv, too.
    found = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.find-links"], capture_output=True, text=True
    )
    environment = os.environ | ({"UV_FIND_LINKS": found.stdout.strip()} if found.stdout.strip() else {})
    uv = [sys.executable, "-m", "uv"]
    same_torch = f"torch=={metadata.version('torch').partition('+')[0]}"
    for command in (
        ["venv", "--python", sys.executable, str(folder), "--allow-existing"],
        ["pip", "install", "--python", str(python), SAELENS, same_torch],
    ):
        done = subprocess.run([*uv, *command], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    return python


def _rows() -> torch.Tensor:
    """As layers of BERT give them: a mean that is large against the spread, and two dimensions of outliers."""
    generator = torch.Generator().manual_seed(0)
    mean, scale = torch.randn(WIDTH, generator=generator), torch.rand(WIDTH, generator=generator) + 0.5
    mean[[7, 40]], scale[[7, 40]] = torch.tensor([-25.0, 18.0]), torch.tensor([6.0, 4.0])
    return mean + scale * torch.randn(ROWS, WIDTH, generator=generator)


def _dictionary(activation: str, rows: torch.Tensor) -> Dictionary:
    """Random, of standardised rows, then folded into raw coordinates; four latents have known activations."""
    generator = torch.Generator().manual_seed(1)
    mean, scale = rows.double().mean(0), rows.double().std(0)
    directions = torch.randn(LATENTS, WIDTH, generator=generator, dtype=torch.float64)
    directions /= directions.norm(dim=1, keepdim=True)
    bias = torch.randn(LATENTS, generator=generator, dtype=torch.float64) / 4
    center = torch.randn(WIDTH, generator=generator, dtype=torch.float64) / 4
    encoder = directions.T / scale[:, None]
    encoder_bias = (bias - (mean / scale + center) @ directions.T).float()
    # Rows do not matter to these: activations exactly at the threshold, one step above, one below, and negative.
    encoder[:, :4] = 0
    at = torch.tensor(THRESHOLD)
    up, down = torch.tensor(torch.inf), torch.tensor(-torch.inf)
    encoder_bias[:4] = torch.stack([at, torch.nextafter(at, up), torch.nextafter(at, down), torch.tensor(-1.0)])
    return Dictionary(
        activation=activation,
        k={"topk": 16, "batch_topk": 16, "relu": 0}[activation],
        encoder=encoder.float(),
        encoder_bias=encoder_bias,
        decoder=(directions * scale).float(),
        decoder_bias=(center * scale + mean).float(),
        threshold=torch.tensor(THRESHOLD if activation == "batch_topk" else 0.0),
        mean=mean.float(),
        scale=scale.float(),
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_saelens_encodes_and_decodes_as_we_do(tmp_path, saelens_python):
    rows = _rows()
    np.save(tmp_path / "rows.npy", rows.numpy())
    dictionaries = {activation: _dictionary(activation, rows) for activation in ACTIVATIONS}
    for number, (activation, dictionary) in enumerate(dictionaries.items()):
        save_dictionary(tmp_path / activation, dictionary, {"layer": number})
    command = [str(saelens_python), "-c", THEIRS, str(tmp_path), *ACTIVATIONS]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    architectures = {"topk": "topk", "batch_topk": "jumprelu", "relu": "standard"}
    for number, (activation, dictionary) in enumerate(dictionaries.items()):
        theirs = np.load(tmp_path / f"{activation}.npz")
        assert (theirs["architecture"], theirs["layer"]) == (architectures[activation], number)
        codes = encode(dictionary, rows)
        decoded = decode(dictionary, codes)
        assert codes.count_nonzero() > 8 * ROWS  # there is something to compare
        np.testing.assert_array_equal(theirs["codes"] != 0, codes != 0)
        np.testing.assert_allclose(theirs["codes"], codes, rtol=1e-5, atol=1e-5)
        for name in ("decoded", "output"):
            np.testing.assert_allclose(theirs[name], decoded, rtol=1e-5, atol=1e-5)
        if activation == "batch_topk":
            assert (theirs["codes"][:, :4] != 0).all(0).tolist() == [True, True, False, False]
