"""From flags, and from mappings of YAML files, to the options of a step: one set of names, types and messages."""

import argparse
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from transformers.hf_argparser import HfArgumentParser

from bertdyn.errors import InputError

_NOT_GIVEN = object()


class OptionParser(HfArgumentParser):
    """HfArgumentParser whose errors are one `InputError`, and that guesses what was meant."""

    def error(self, message: str) -> NoReturn:
        unknown, _, names = message.partition("unrecognized arguments: ")
        if not unknown and names.startswith("-"):
            name = names.split()[0].partition("=")[0]
            near = difflib.get_close_matches(name, list(self._option_string_actions), n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "--help lists those there are"
            raise InputError(f"unknown option {name}: {hint}")
        raise InputError(message)

    def given(self, argv: Sequence[str]) -> dict[str, Any]:
        """The options among these flags, and nothing that is only a default.

        Raises
        ------
        InputError
            Unknown option, or a value of the wrong type.
        """
        # argparse leaves attributes alone that the namespace has already: what is untouched was not given.
        namespace = argparse.Namespace(**{action.dest: _NOT_GIVEN for action in self._actions})
        parsed = vars(self.parse_args(list(argv), namespace))
        return {name: value for name, value in parsed.items() if value is not _NOT_GIVEN}

    def of_mapping(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """The options in a mapping, as flags would give them: YAML's reading of 2e-5 as a string does no harm.

        Raises
        ------
        InputError
            Unknown option, or a value of the wrong type.
        """
        return self.given([f"--{name}={_written(value)}" for name, value in content.items() if value is not None])


def _written(value: Any) -> str:
    """A value as a flag has it; a list `[2, 4]` as `2,4`."""
    return ",".join(str(one) for one in value) if isinstance(value, list) else str(value)
