"""What benchmarks share that put several tables into one file: conditions, writing, printing."""

import argparse
import json
import os
import platform
import sys
from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]


def conditions(options: argparse.Namespace, packages: Iterable[str], left_out: Collection[str]) -> Row:
    """What a table was measured under.

    Parameters
    ----------
    packages
        Those whose versions matter.
    left_out
        Options that say nothing on another machine.
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "options": {name: value for name, value in vars(options).items() if name not in left_out},
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "versions": {name: metadata.version(name) for name in packages} | {"python": platform.python_version()},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def read_tables(path: Path) -> dict[str, Row]:
    """Name → table of what was measured before."""
    return json.loads(path.read_text()) if path.exists() else {}


def write_table(path: Path, name: str, table: Row) -> None:
    """Put a table in place of the one of its name; the others stay."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(read_tables(path) | {name: table}, indent=1) + "\n")


def show(name: str, rows: Iterable[Row]) -> None:
    """Print a table, a line a row."""
    rows = [{key: shown(value) for key, value in row.items()} for row in rows]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, *([row.get(column, "") for column in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print(f"\n{name}")
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 0.1 else f"{value:.4f}"
    return str(value)[:80]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
