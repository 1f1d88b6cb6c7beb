"""Which units of an encoder stay: a small JSON that can be printed, checked, hashed and composed.

A plan says nothing of how it was found. It names the model it was made for, by its sizes and by a fingerprint of its
weights, and lists the indices that stay, block by block, in the numbering of that model.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bertdyn.errors import InputError
from bertdyn.files import write_json
from bertdyn.pruning.shape import KINDS, UNIT_NAMES, Shape, Site

FORMAT = 1


@dataclass(frozen=True)
class Plan:
    """The units that stay."""

    shape: Shape
    """Of the model that the plan is for."""
    kept: dict[Site, tuple[int, ...]]
    """Ascending indices by block, for every block of `shape` that has a unit; empty: the block is removed."""
    fingerprint: str = ""
    """Of the weights of that model; "" fits any of the same shape."""

    def __post_init__(self) -> None:
        if set(self.kept) != set(self.shape.sites):
            raise ValueError("a plan has an entry for each block that has units, and no other")
        for site, units in self.kept.items():
            if not all(type(unit) is int for unit in units):
                raise ValueError(f"{site}: kept units must be whole numbers")
            if list(units) != sorted(set(units)) or (units and not 0 <= units[0] <= units[-1] < self.shape.units(site)):
                raise ValueError(f"{site}: kept units must be ascending numbers from 0 to {self.shape.units(site) - 1}")

    @property
    def result(self) -> Shape:
        """The shape of the pruned model."""
        return self.shape._replace(
            heads=self._counts("attention", self.shape.heads), neurons=self._counts("ffn", self.shape.neurons)
        )

    def _counts(self, kind: str, dense: Sequence[int]) -> tuple[int, ...]:
        return tuple(len(self.kept.get(Site(kind, layer), ())) for layer in range(1, len(dense) + 1))

    def inputs(self, site: Site) -> list[int]:
        """The inputs of a block's output projection that stay: those of its kept units."""
        width = self.shape.unit_width(site.kind)
        return [unit * width + i for unit in self.kept[site] for i in range(width)]

    def then(self, later: "Plan") -> "Plan":
        """This plan and, on its result, `later`: one plan in the numbering of this one's model.

        Raises
        ------
        ValueError
            If `later` is for a model of another shape.
        """
        if later.shape != self.result:
            raise ValueError(f"a plan for {later.shape} cannot follow one that leaves {self.result}")
        kept = {
            site: tuple(units[i] for i in later.kept[site]) if site in later.kept else units
            for site, units in self.kept.items()
        }
        return Plan(self.shape, kept, self.fingerprint)

    def table(self) -> pd.DataFrame:
        """Before and after: one row a layer with heads, heads_kept, neurons, neurons_kept."""
        after = self.result
        return pd.DataFrame(
            {
                "layer": range(1, len(self.shape.heads) + 1),
                "heads": self.shape.heads,
                "heads_kept": after.heads,
                "neurons": self.shape.neurons,
                "neurons_kept": after.neurons,
            }
        )

    @property
    def digest(self) -> str:
        """SHA-256 of what stays."""
        content = [[str(site), *units] for site, units in sorted(self.kept.items())]
        return hashlib.sha256(json.dumps([self.shape, content]).encode()).hexdigest()

    def check_fits(self, shape: Shape, fingerprint: str) -> None:
        """Raise `InputError` unless the plan was made for a model of this shape and these weights."""
        if shape != self.shape:
            raise InputError(
                f"the plan is for an encoder with {_sizes(self.shape)}, this one has {_sizes(shape)}: "
                "a plan belongs to the model that it was made for"
            )
        if self.fingerprint and self.fingerprint != fingerprint:
            raise InputError(
                "the plan was made for a model of the same shape with other weights: its units are not these"
            )

    def save(self, path: Path) -> None:
        """Write the plan as JSON."""
        write_json(path, self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """What the JSON file holds."""
        layers = [
            {UNIT_NAMES[kind]: list(self.kept[Site(kind, layer)]) for kind in KINDS if Site(kind, layer) in self.kept}
            for layer in range(1, len(self.shape.heads) + 1)
        ]
        return {
            "format": FORMAT,
            "of": self.shape._asdict(),
            "fingerprint": self.fingerprint,
            "digest": self.digest,
            "layers": layers,
        }


def load_plan(path: Path) -> Plan:
    """The plan in a JSON file.

    Raises
    ------
    InputError
        If there is none that can be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, accepted is {FORMAT}")
        of = content["of"]
        shape = Shape(**of | {"heads": tuple(of["heads"]), "neurons": tuple(of["neurons"])})
        kept = {
            Site(kind, layer): tuple(units[UNIT_NAMES[kind]])
            for layer, units in enumerate(content["layers"], start=1)
            for kind in KINDS
            if UNIT_NAMES[kind] in units
        }
        plan = Plan(shape, kept, content["fingerprint"])
        if content["digest"] != plan.digest:
            raise ValueError("its digest is that of other units")
        return plan
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"--plan {str(path)!r} is no pruning plan: {type(error).__name__}: {error}") from error


def identity(shape: Shape, fingerprint: str = "") -> Plan:
    """The plan that keeps everything."""
    return Plan(shape, {site: tuple(range(shape.units(site))) for site in shape.sites}, fingerprint)


def same_sizes(plan: Plan, scores: Mapping[Site, Any]) -> Plan:
    """As many units a block as `plan` keeps, but those that `scores` ([units] by block) puts first: a control."""
    kept = {site: best(scores[site], len(units)) for site, units in plan.kept.items()}
    return Plan(plan.shape, kept, plan.fingerprint)


def best(scores: Any, count: int) -> tuple[int, ...]:
    """Indices of the `count` highest of scores [units], ascending; of equals the first."""
    order = sorted(range(len(scores)), key=lambda i: -float(scores[i]))
    return tuple(sorted(order[:count]))


def _sizes(shape: Shape) -> str:
    return f"heads {list(shape.heads)} of {shape.head_size} and neurons {list(shape.neurons)}"
