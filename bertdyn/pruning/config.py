"""What to cut, by which measure, and what makes up for it."""

# HfArg returns a dataclasses.Field, which stands for the default value.
# mypy: disable-error-code="assignment"

from dataclasses import dataclass
from typing import Optional

from transformers.hf_argparser import HfArg

from bertdyn.errors import InputError

CRITERIA = (
    "auto",
    "fisher",
    "taylor",
    "fluctuation",
    "wanda",
    "magnitude",
    "activation_change",
    "state_change",
    "random",
)
COMPENSATIONS = ("auto", "none", "mean", "least_squares")
THRESHOLD_KINDS = ("quantile", "absolute")
BUDGETS = ("flops", "parameters", "latency")
CONTROLS = ("dense", "random", "magnitude")
DEFAULT_BUDGET = 0.75


@dataclass
class PruningConfig:
    """Everything that decides which units stay."""

    criterion: str = HfArg(
        default="fisher",
        help="What a head or neuron is worth: fisher and taylor (gradients of gates), fluctuation, wanda, magnitude, "
        "activation_change (between texts, System 4), state_change (between --reference_state and --state), random; "
        "auto: the one whose model says most like the dense one on calibration texts.",
    )
    reference_state: str = HfArg(default="pretrained", help="Of the source run, for state_change.")
    budget: Optional[float] = HfArg(
        default=None,
        help="Share of the encoder's cost that stays, divided among all blocks. Default: 0.75, where nothing else "
        "says how much.",
    )
    budget_of: str = HfArg(
        default="flops",
        help="flops or parameters of the encoder's layers, or latency (measured here: a table of block sizes).",
    )
    cost_length: int = HfArg(default=64, help="Tokens a text, for FLOPs and the latency table.")
    cost_batch_size: int = HfArg(default=16, help="Texts a batch, for the latency table.")
    pruning_rounds: int = HfArg(
        default=1, help="Reach the budget in so many equal steps, looking at the units anew before each."
    )
    attention_thresholds: Optional[str] = HfArg(
        default=None,
        help="Instead of a budget, with --ffn_thresholds: a head stays if its score is at least the threshold of its "
        "layer: '0,0,0.3,0.7', or one number for all layers. 0 keeps all.",
    )
    ffn_thresholds: Optional[str] = HfArg(default=None, help="The same of neurons.")
    threshold_kind: str = HfArg(
        default="quantile", help="quantile (of the layer's scores, 0 to 1), or absolute (a score)."
    )
    attention_keep_ratios: Optional[str] = HfArg(
        default=None,
        help="Instead, with --ffn_keep_ratios: share of heads that stay in each layer, or one number for all.",
    )
    ffn_keep_ratios: Optional[str] = HfArg(default=None, help="The same of neurons.")
    plan: Optional[str] = HfArg(
        default=None, help="Instead: a plan.json that was made for this very model (of an earlier prune run)."
    )
    round_to: int = HfArg(default=1, help="Numbers of neurons are multiples of this (GPUs like 8 or 16).")
    allow_empty: bool = HfArg(
        default=False, help="Let a block lose all its heads or neurons; its constant stays. Default: one stays."
    )
    compensation: str = HfArg(
        default="auto",
        help="What makes up for removed units: mean (folded into the bias), least_squares (read off the units that "
        "stay), none; auto: for each block what brings the model nearest to the dense one on calibration texts.",
    )
    calibration_examples: int = HfArg(
        default=512, help="Training texts (questions: windows) to look at units with; a quarter of them judges."
    )
    calibration_min_length: int = HfArg(
        default=0,
        help="Shortest calibration text in tokens. GLUE SST-2 trains on phrases and is tested on sentences: take 20.",
    )
    calibration_seed: int = HfArg(default=0, help="Which texts.")

    def __post_init__(self) -> None:
        for name, accepted in (
            ("criterion", CRITERIA),
            ("budget_of", BUDGETS),
            ("threshold_kind", THRESHOLD_KINDS),
            ("compensation", COMPENSATIONS),
        ):
            if getattr(self, name) not in accepted:
                raise InputError(f"--{name} {getattr(self, name)!r}: accepted are {', '.join(accepted)}")
        for name, least in (
            ("cost_length", 1),
            ("cost_batch_size", 1),
            ("pruning_rounds", 1),
            ("round_to", 1),
            ("calibration_examples", 8),
            ("calibration_min_length", 0),
            ("calibration_seed", 0),
        ):
            if getattr(self, name) < least:
                raise InputError(f"--{name} {getattr(self, name)}: accepted are values from {least}")
        if self.budget is not None and not 0 < self.budget <= 1:
            raise InputError(f"--budget {self.budget}: accepted are shares above 0, at most 1")
        self._check_way()
        for kind in ("attention", "ffn"):
            self.thresholds(kind)
            self.keep_ratios(kind)
        parent = getattr(super(), "__post_init__", None)
        if parent:
            parent()

    def _check_way(self) -> None:
        """One way to say how much stays, and both halves of it."""
        for way in ("thresholds", "keep_ratios"):
            given = [kind for kind in ("attention", "ffn") if getattr(self, f"{kind}_{way}") is not None]
            if len(given) == 1:
                missing = "ffn" if given == ["attention"] else "attention"
                raise InputError(
                    f"--{given[0]}_{way} needs --{missing}_{way}, too ({'0' if way == 'thresholds' else '1'} keeps all)"
                )
        ways = {"--budget": self.budget, "thresholds": self.attention_thresholds}
        ways |= {"keep ratios": self.attention_keep_ratios, "--plan": self.plan}
        given = [name for name, value in ways.items() if value is not None]
        if len(given) > 1:
            raise InputError(f"{' and '.join(given)} say twice how much stays: give one of them")
        way = given[0] if given else "--budget"
        needs = {"pruning_rounds": "--budget", "budget_of": "--budget", "threshold_kind": "thresholds"}
        for name, needed in needs.items():
            if getattr(self, name) != getattr(PruningConfig, name) and way != needed:
                raise InputError(f"--{name} {getattr(self, name)}: accepted with {needed} only")
        for name in ("criterion", "round_to") if self.plan else ():
            if getattr(self, name) != getattr(PruningConfig, name):
                raise InputError(f"--{name} {getattr(self, name)}: a plan says which units stay; leave it out")

    @property
    def target_budget(self) -> float | None:
        """The share of the cost that stays; None where thresholds, ratios or a plan say what does."""
        if self.attention_thresholds is not None or self.attention_keep_ratios is not None or self.plan is not None:
            return None
        return DEFAULT_BUDGET if self.budget is None else self.budget

    def thresholds(self, kind: str) -> list[float]:
        """Of `attention` or `ffn`: as they were given, empty where they were not.

        Raises
        ------
        InputError
            If they are no numbers, or no quantiles.
        """
        found = self._numbers(f"{kind}_thresholds")
        if self.threshold_kind == "quantile" and not all(0 <= number <= 1 for number in found):
            raise InputError(
                f"--{kind}_thresholds {getattr(self, f'{kind}_thresholds')!r}: accepted are quantiles from 0 to 1, or "
                "any numbers with --threshold_kind absolute"
            )
        return found

    def keep_ratios(self, kind: str) -> list[float]:
        """Of `attention` or `ffn`: as they were given, empty where they were not.

        Raises
        ------
        InputError
            If they are no shares.
        """
        found = self._numbers(f"{kind}_keep_ratios")
        if not all(0 <= number <= 1 for number in found):
            raise InputError(
                f"--{kind}_keep_ratios {getattr(self, f'{kind}_keep_ratios')!r}: accepted are shares from 0 to 1"
            )
        return found

    def _numbers(self, name: str) -> list[float]:
        value = getattr(self, name)
        if value is None:
            return []
        try:
            found = [float(number) for number in str(value).split(",")]
        except ValueError:
            found = [float("nan")]
        if any(number != number for number in found):
            raise InputError(f"--{name} {value!r}: accepted are numbers, one a layer or one for all: '0,0,0.3,0.7'")
        return found
