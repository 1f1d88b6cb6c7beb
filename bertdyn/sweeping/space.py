"""What a trial may choose: a small YAML file, checked against what there is to choose, as Optuna distributions.

criterion: fisher                                    fixed
compensation: [mean, least_squares]                  one of these
learning_rate: {low: 1e-5, high: 2e-4, log: true}    a range; step: makes it a grid
ffn_thresholds: {low: 0, high: 0.9}                  of something with a value a layer: each layer's own;
                                                     layers: same gives all of them one;
                                                     [{low: 0, high: 0}, …] is a range for each layer
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from optuna import Trial
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from bertdyn.errors import InputError

MOST_POINTS = 100_000
RANGE_KEYS = ("low", "high", "log", "step")


@dataclass(frozen=True)
class Words:
    """A parameter that is one of these."""

    accepted: tuple[str, ...]


@dataclass(frozen=True)
class Switch:
    """A parameter that is true or false."""


@dataclass(frozen=True)
class Number:
    """A parameter from `low` to `high`; with `whole` an integer."""

    low: float
    high: float
    whole: bool = False
    above: bool = False
    """Whether `low` itself is not accepted."""
    last: bool = False
    """Whether -1 stands for `high`."""


@dataclass(frozen=True)
class PerLayer:
    """A number for each layer."""

    each: Number
    layers: int
    """How many the encoder has."""


Kind = Words | Switch | Number | PerLayer


@dataclass(frozen=True)
class Space:
    """Everything that the trials of a study choose from."""

    free: dict[str, BaseDistribution]
    """Optuna's name → what there is to choose; names of layers end in `_01`, `_02`, …"""
    kinds: Mapping[str, Kind]

    def choices(self, name: str) -> tuple[Any, ...]:
        """What a word or switch is chosen from; empty where it is not in the space."""
        return getattr(self.free.get(name), "choices", ())

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """Parameter → what `trial` has; of parameters with a value a layer, the list of them."""
        return self.gather({name: _suggest(trial, name, distribution) for name, distribution in self.free.items()})

    def gather(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """The same of the params of a finished trial."""
        found: dict[str, Any] = {}
        for name, kind in self.kinds.items():
            if name in chosen:
                found[name] = [chosen[name]] * kind.layers if isinstance(kind, PerLayer) else chosen[name]
            elif isinstance(kind, PerLayer) and layer_name(name, 1) in chosen:
                found[name] = [chosen[layer_name(name, layer)] for layer in range(1, kind.layers + 1)]
        return found

    def scatter(self, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
        """Optuna's params of a trial with these values, as near as the ranges allow.

        Parameters
        ----------
        wanted
            Parameter → value; of parameters with a value a layer, a list of numbers in the order of depth, however
            many: they are interpolated over relative depth.

        Returns
        -------
        params
            None if a word or switch is not among the choices: there is no such trial.
        """
        params: dict[str, Any] = {}
        for name, value in wanted.items():
            kind = self.kinds[name]
            if isinstance(kind, PerLayer):
                layers = interpolated(value, kind.layers)
                own = {layer_name(name, layer): layers[layer - 1] for layer in range(1, kind.layers + 1)}
                values = {name: float(np.mean(layers))} if name in self.free else own
            else:
                values = {name: value}
            for key, one in values.items():
                if key not in self.free:
                    continue  # what is not in the space stays as the options say
                nearest = _nearest(self.free[key], one)
                if nearest is None:
                    return None
                params[key] = nearest
        return params

    def named(self, origin: str, wanted: Mapping[str, Any], params: Mapping[str, Any]) -> str:
        """`origin`, with a word on it where `scatter` could only come near what was wanted."""
        found = self.gather(params)
        for name, value in found.items():
            kind = self.kinds[name]
            exact = interpolated(wanted[name], kind.layers) if isinstance(kind, PerLayer) else value
            same = np.allclose(exact, value) if isinstance(kind, PerLayer) else value == wanted[name]
            if not same:
                return f"{origin}, as near as the space allows"
        return origin

    def check_free(self, config: Any, names: Iterable[str]) -> None:
        """Raise `InputError` if an option is given that trials choose: it would say nothing."""
        for name in names:
            if self._chooses(name) and getattr(config, name) != getattr(type(config), name):
                raise InputError(
                    f"--{name} {getattr(config, name)!r}: the trials choose it; to fix it, give "
                    f"--space_overrides '{{{name}: {str(getattr(config, name)).lower()}}}'"
                )

    def _chooses(self, name: str) -> bool:
        return name in self.free or layer_name(name, 1) in self.free

    def to_dict(self) -> dict[str, Any]:
        """What can be compared and shown: name → range or choices."""
        return {name: _described(distribution) for name, distribution in self.free.items()}

    def grid(self) -> dict[str, list[Any]]:
        """All values of each, for a sampler that tries all of them.

        Raises
        ------
        InputError
            If a range has no steps, or there are too many points.
        """
        values = {name: _all_values(name, distribution) for name, distribution in self.free.items()}
        points = math.prod(map(len, values.values()))
        if points > MOST_POINTS:
            raise InputError(
                f"--sampler grid: {points:.3g} points; accepted are at most {MOST_POINTS}: fix parameters, give layers "
                "the same threshold (layers: same), or take larger steps"
            )
        return values


def layer_name(name: str, layer: int) -> str:
    """`ffn_thresholds`, 3 → `ffn_threshold_03`"""
    return f"{name.removesuffix('s')}_{layer:02d}"


def interpolated(values: Sequence[float], layers: int) -> list[float]:
    """A list for one depth, as one for another: linear over relative depth, the ends on the ends."""
    if len(values) == 1:
        return [float(values[0])] * layers
    at = np.linspace(0, 1, layers) if layers > 1 else [1.0]
    return [float(value) for value in np.interp(at, np.linspace(0, 1, len(values)), values)]


def read_space(path: Path, overrides: str | None, kinds: Mapping[str, Kind]) -> Space:
    """The space in a YAML file, with the entries of `overrides` (a YAML mapping) in place of its own.

    Parameters
    ----------
    kinds
        All parameters that there are.

    Raises
    ------
    InputError
        If the file cannot be read; a parameter is unknown; a range is empty, inverted or not accepted; a list of
        ranges has another number of layers; or nothing is left to choose.
    """
    entries = _mapping(path)
    if overrides:
        entries |= _parsed(overrides, "--space_overrides")
    free: dict[str, BaseDistribution] = {}
    for name, entry in entries.items():
        if name not in kinds:
            raise InputError(f"{path.name}: unknown parameter {name!r}; there are {', '.join(kinds)}")
        free |= _distributions(f"{path.name}, {name}", name, entry, kinds[name])
    if all(distribution.single() for distribution in free.values()):
        raise InputError(f"{path.name}: every parameter is fixed, so that there is nothing to choose")
    return Space(free, kinds)


def _mapping(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--space {str(path)!r} cannot be read: {' '.join(str(error).split())}") from error
    return _parsed(text, f"--space {str(path)!r}")


def _parsed(text: str, where: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that there is not
        raise InputError(f"{where} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"{where}: accepted is a YAML mapping of parameters to ranges, choices or values")
    return content


def _distributions(where: str, name: str, entry: Any, kind: Kind) -> dict[str, BaseDistribution]:
    if not isinstance(kind, PerLayer):
        return {name: _one(where, entry, kind)}
    if isinstance(entry, list):
        if len(entry) != kind.layers:
            raise InputError(
                f"{where}: a list for {len(entry)} layers; accepted are {kind.layers} entries, one for each layer of "
                "this encoder, or a range for all"
            )
        return {
            layer_name(name, layer): _one(f"{where}, layer {layer}", own, kind.each)
            for layer, own in enumerate(entry, start=1)
        }
    if isinstance(entry, dict) and "layers" in entry:
        if entry["layers"] not in ("same", "own"):
            raise InputError(f"{where}: layers: {entry['layers']!r}; accepted are same, own")
        entry = dict(entry)
        if entry.pop("layers") == "same":
            return {name: _one(where, entry, kind.each)}
    return {layer_name(name, layer): _one(where, entry, kind.each) for layer in range(1, kind.layers + 1)}


def _one(where: str, entry: Any, kind: Words | Switch | Number) -> BaseDistribution:
    if isinstance(kind, Number):
        return _range(where, entry, kind)
    choices = entry if isinstance(entry, list) else [entry]
    accepted: tuple[Any, ...] = kind.accepted if isinstance(kind, Words) else (False, True)
    wrong = [choice for choice in choices if choice not in accepted or isinstance(choice, bool) != (kind == Switch())]
    if wrong or not choices:
        said = f"{wrong[0]!r}" if wrong else "nothing"
        raise InputError(f"{where}: {said}; accepted are {', '.join(str(word).lower() for word in accepted)}")
    return CategoricalDistribution(tuple(dict.fromkeys(choices)))


def _range(where: str, entry: Any, kind: Number) -> BaseDistribution:
    if isinstance(entry, list):
        values = [_number(where, value, kind) for value in entry]
        if not values:
            raise InputError(f"{where}: an empty list")
        return CategoricalDistribution(tuple(dict.fromkeys(values)))
    if not isinstance(entry, dict):
        entry = {"low": entry, "high": entry}
    unknown = [key for key in entry if key not in RANGE_KEYS]  # layers: was taken out where there are such
    if unknown or "low" not in entry or "high" not in entry:
        said = f"unknown {unknown[0]!r}" if unknown else "a range needs low and high"
        raise InputError(f"{where}: {said}; accepted are low, high, and log: true or step")
    low, high = (_number(where, entry[end], kind) for end in ("low", "high"))
    if low > high:
        raise InputError(f"{where}: the range from {low} to {high} is empty; low must not be above high")
    log, step = entry.get("log", False), entry.get("step")
    if not isinstance(log, bool):
        raise InputError(f"{where}: log {log!r}; accepted are true, false")
    if step is not None:
        if log:
            raise InputError(f"{where}: step {step!r}; accepted are steps without log: true, or log: true without")
        step = _number(f"{where}, step", step, Number(0, math.inf, whole=kind.whole, above=True))
    if not math.isfinite(high - low):
        raise InputError(f"{where}: a range from {low} to {high}; accepted are finite ends")
    if log and low <= 0:
        raise InputError(f"{where}: low {low} with log: true; accepted are values above 0")
    if kind.whole:
        return IntDistribution(int(low), int(high), log=log, step=int(step or 1))
    return FloatDistribution(low, high, log=log, step=step)


def _number(where: str, value: Any, kind: Number) -> float:
    try:
        number = float(value)  # YAML reads 1e-5 as a word
    except (TypeError, ValueError):
        number = math.nan
    if kind.last and number == -1:
        number = kind.high
    fits = math.isfinite(number) and kind.low <= number <= kind.high and not (kind.above and number == kind.low)
    if isinstance(value, bool) or not fits or (kind.whole and number != int(number)):
        what = "whole numbers" if kind.whole else "numbers"
        low = f"above {kind.low:g}" if kind.above else f"from {kind.low:g}"
        low = "" if kind.low == -math.inf else f" {low}"
        high = "" if kind.high == math.inf else f" to {kind.high:g}"
        raise InputError(f"{where}: {value!r}; accepted are {what}{low}{high}")
    return int(number) if kind.whole else number


def _suggest(trial: Trial, name: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(
            name, distribution.low, distribution.high, log=distribution.log, step=distribution.step
        )
    assert isinstance(distribution, FloatDistribution)
    return trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log, step=distribution.step)


def _nearest(distribution: BaseDistribution, value: Any) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return value if value in distribution.choices else None
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    within = min(max(value, distribution.low), distribution.high)
    if distribution.step:
        within = distribution.low + round((within - distribution.low) / distribution.step) * distribution.step
        within = min(within, distribution.high)
    return int(within) if isinstance(distribution, IntDistribution) else float(within)


def _described(distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    return {key: getattr(distribution, key) for key in ("low", "high", "log", "step") if getattr(distribution, key)} | {
        "low": distribution.low,
        "high": distribution.high,
    }


def _all_values(name: str, distribution: BaseDistribution) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    if distribution.single():
        return [distribution.low]
    if not distribution.step or distribution.log:
        raise InputError(
            f"--sampler grid: {name} is a range without steps; give it step, or a list, or take another sampler"
        )
    count = int(round((distribution.high - distribution.low) / distribution.step)) + 1
    whole = isinstance(distribution, IntDistribution)
    values = [min(distribution.low + i * distribution.step, distribution.high) for i in range(count)]
    return [int(value) if whole else float(value) for value in values]
