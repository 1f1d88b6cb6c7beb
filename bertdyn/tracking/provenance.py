"""What a run was made with: code, machine, versions.

MLflow records the git commit of a dirty tree without saying that it is dirty, so the state of the
tree is recorded here, with the difference to the commit.
"""

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

_PACKAGES = (
    "accelerate",
    "bertdyn",
    "datasets",
    "matplotlib",
    "mlflow",
    "numpy",
    "optuna",
    "pandas",
    "pyarrow",
    "safetensors",
    "scikit-learn",
    "scipy",
    "tokenizers",
    "torch",
    "transformers",
)
_EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
_LONGEST_DIFF = 5_000_000


class GitState(NamedTuple):
    """The working tree at the start of a run."""

    commit: str | None
    """None before the first commit."""
    dirty: bool
    """Whether anything that git does not ignore differs from the commit."""
    diff: str
    """`git diff` against the commit, after a list of the untracked files, which it does not show."""


def source_folder() -> Path:
    """The folder that holds this package."""
    return Path(__file__).resolve().parents[2]


def git_state(folder: Path) -> GitState | None:
    """The state of the git tree that `folder` is in; None when it is in none, or git is not there."""
    status = _git(folder, "status", "--porcelain", "--untracked-files=normal")
    if status is None:
        return None
    commit = _git(folder, "rev-parse", "--verify", "--quiet", "HEAD")
    diff = _git(folder, "diff", "--no-ext-diff", "--no-color", commit.strip() if commit else _EMPTY_TREE) or ""
    if len(diff) > _LONGEST_DIFF:
        diff = diff[:_LONGEST_DIFF] + "\n[cut here: the difference is too long]\n"
    untracked = [f"untracked: {line[3:]}\n" for line in status.splitlines() if line.startswith("??")]
    return GitState(commit.strip() if commit else None, bool(status.strip()), "".join(untracked) + diff)


def environment(git: GitState | None) -> dict[str, Any]:
    """Machine, interpreter, commit, and versions of the packages that can change a number."""
    result: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "host": platform.node(),
        "cpu_count": os.cpu_count(),
        "command": sys.argv,
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
    }
    # Steps that do not use torch should not pay seconds to import it here.
    torch = sys.modules.get("torch")
    if torch is not None:
        result["torch_threads"] = torch.get_num_threads()
        result["cuda"] = torch.version.cuda
        result["devices"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    result["git"] = {"commit": git.commit, "dirty": git.dirty} if git else None
    return result


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
