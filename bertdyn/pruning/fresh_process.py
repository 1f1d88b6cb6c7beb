"""A saved model in a Python of its own that cannot import bertdyn: does it load anywhere, and what does it need?

The model comes from its folder alone, with the code that was saved beside it, on one thread of the CPU. What the
process leaves behind, its copy of that code included, goes with its temporary folder.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file, save_file
from torch import Tensor

import bertdyn
from bertdyn.pruning.export import output_names

SCRIPT = """
import json, re, resource, sys, time

request = json.loads(sys.argv[1])
if request["bertdyn"]:
    sys.path.append(request["bertdyn"])
    import bertdyn.models.loading  # registers its classes
else:
    sys.modules["bertdyn"] = None  # every import of it is an error

import torch, transformers
from safetensors.torch import load_file, save_file

def memory_mb(field):
    # Linux counts into ru_maxrss what the process was before exec, a copy of its parent: not where there is a choice.
    try:
        with open("/proc/self/status") as status:
            return int(re.search(field + r":\\s+(\\d+) kB", status.read())[1]) / 2**10
    except FileNotFoundError:  # macOS
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

torch.set_num_threads(1)
batch = load_file(request["batch"])
auto_class = getattr(transformers, request["auto_class"])
remote = {"trust_remote_code": not request["bertdyn"]}
config = transformers.AutoConfig.from_pretrained(request["folder"], **remote)
with torch.device("meta"):  # imports the code of the model, which is much against a small model's weights
    auto_class.from_config(config, **remote)
idle_memory_mb = memory_mb("VmRSS")
start = time.perf_counter()
model = auto_class.from_pretrained(request["folder"], **remote).eval()
load_seconds = time.perf_counter() - start
with torch.inference_mode():
    outputs = model(**batch)
save_file({name: outputs[name].contiguous() for name in request["outputs"]}, request["result"])
print(json.dumps([load_seconds, idle_memory_mb, memory_mb("VmHWM")]))
"""


class FreshProcess(NamedTuple):
    """What a model gave and needed in a process of its own."""

    outputs: list[Tensor]
    """Logits; start and end logits; or the last hidden state: what `auto_class` is for."""
    load_seconds: float
    """From the folder to the model, without the import of any code."""
    idle_memory_mb: float
    """Resident MiB before the weights are loaded: Python, torch, the code of the model, the batch."""
    peak_memory_mb: float
    """Largest resident MiB of the process, from its start to the end of inference. Weights are mapped from their file:
    rows of the word embeddings that the batch does not read are hardly among them."""
    weight_bytes: int
    """Size of the weight files."""


def in_fresh_process(
    folder: Path, batch: Mapping[str, Tensor], auto_class: str, *, with_bertdyn: bool = False
) -> FreshProcess:
    """Load the model in `folder` in a new process, offline, and run `batch` through it.

    Parameters
    ----------
    batch
        Arguments of the model, [batch, sequence] each.
    auto_class
        `"AutoModelForSequenceClassification"`, `"AutoModelForQuestionAnswering"` or `"AutoModel"`.
    with_bertdyn
        Use the classes of this bertdyn in place of the code in `folder`.

    Raises
    ------
    RuntimeError
        If the process fails: the last line of what it says.
    """
    with tempfile.TemporaryDirectory(prefix="bertdyn-fresh-") as folder_name:
        work = Path(folder_name)
        save_file({key: tensor.cpu().clone().contiguous() for key, tensor in batch.items()}, work / "batch.safetensors")
        names = output_names(auto_class)
        request = {
            "folder": str(folder.resolve()),
            "auto_class": auto_class,
            "outputs": names,
            "bertdyn": str(Path(bertdyn.__file__).parents[1]) if with_bertdyn else None,
            "batch": str(work / "batch.safetensors"),
            "result": str(work / "outputs.safetensors"),
        }
        load_seconds, idle_memory_mb, peak_memory_mb = _run(request, work)
        outputs = load_file(work / "outputs.safetensors")
    return FreshProcess(
        [outputs[key] for key in names],
        load_seconds,
        idle_memory_mb,
        peak_memory_mb,
        sum(file.stat().st_size for file in folder.glob("*.safetensors")),
    )


def _run(request: dict[str, Any], work: Path) -> tuple[float, float, float]:
    """The three numbers that `SCRIPT` prints; its outputs are in the file that `request` names."""
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    alone = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(work / "modules"), "OMP_NUM_THREADS": "1"}
    # -I: neither the working folder nor PYTHONPATH is searched for modules.
    done = subprocess.run(
        [sys.executable, "-I", "-c", SCRIPT, json.dumps(request)],
        cwd=work,
        env=os.environ | quiet | alone,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"]
        raise RuntimeError(f"{request['folder']} does not load in a process of its own: {said[-1]}")
    load_seconds, idle_memory_mb, peak_memory_mb = json.loads(done.stdout.splitlines()[-1])
    return load_seconds, idle_memory_mb, peak_memory_mb
