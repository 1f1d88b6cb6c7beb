"""Options that are lists: from the string to its members, with what is wrong with it."""

import math
from collections.abc import Sequence

from bertdyn.errors import InputError


def several_seeds(value: str | None) -> list[int]:
    """The seeds of a list such as '0,1,2'; empty without one.

    Raises
    ------
    InputError
        If they are not two or more different whole numbers.
    """
    if not value:
        return []
    try:
        seeds = [int(seed) for seed in value.split(",")]
    except ValueError:
        seeds = []
    if len(set(seeds)) < 2 or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise InputError(f"--seeds {value!r}: accepted are at least two different whole numbers: '0,1,2'")
    return seeds


def numbers(value: str, flag: str) -> list[float]:
    """The numbers of a list such as '0.1,1', ascending, each once.

    Raises
    ------
    InputError
        If it is no list of positive numbers.
    """
    try:
        found = sorted({float(number) for number in value.split(",")})
    except ValueError:
        found = [math.nan]
    if not all(0 < number < math.inf for number in found):
        raise InputError(f"--{flag} {value!r}: accepted are numbers above 0, such as '0.1,1'")
    return found


def layer_numbers(value: str, depth: int | None = None) -> list[int]:
    """The layers that a list such as '0,3,-1' names, 0 to `depth`, in order; unchecked without a depth.

    Raises
    ------
    InputError
        If it is no such list, or there is no such layer.
    """
    if value == "all":
        return list(range((depth or 0) + 1))
    try:
        numbers = [int(number) for number in value.split(",")]
    except ValueError:
        raise InputError(f"--layers {value!r}: accepted are 'all', or numbers such as '0,3,6'") from None
    if depth is None:
        return numbers
    wrong = [number for number in numbers if not -depth - 1 <= number <= depth]
    if wrong:
        raise InputError(
            f"--layers {value!r}: the model has no layer {wrong[0]}; accepted are 0 (embeddings) to {depth}, "
            "or -1 for the last"
        )
    return sorted({number % (depth + 1) for number in numbers})


def choices(value: str, flag: str, accepted: Sequence[str] | None = None) -> list[str]:
    """The words of a list such as 'train,probe', each once.

    Raises
    ------
    InputError
        If there is none, or one that is not accepted.
    """
    words = list(dict.fromkeys(word.strip() for word in value.split(",") if word.strip()))
    wrong = [word for word in words if accepted is not None and word not in accepted]
    if wrong or not words:
        among = f"accepted are {', '.join(accepted)}" if accepted else "accepted are one or more names"
        raise InputError(f"--{flag} {value!r}: {among}")
    return words
