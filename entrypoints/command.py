"""What all commands share: options from defaults, a YAML file and flags, and truthful exits.

Exit status: 0 done; 2 the input is wrong (one line says what, where and what is accepted); 1
anything else.
"""

import dataclasses
import errno
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from transformers.utils import logging as transformers_logging

from bertdyn.errors import InputError
from bertdyn.steps.options import OptionParser
from bertdyn.tracking.endings import SigtermRaises

if TYPE_CHECKING:
    from bertdyn.tracking.tracker import Tracker

Config = TypeVar("Config")


def parse(config_class: type[Config], description: str, argv: list[str] | None = None) -> tuple[Config, set[str]]:
    """The options of a command, and the names of those that were given.

    Default < `--config file.yaml` < flag. `mlflow run` passes every declared default as a flag, so
    a flag that equals its default, or is empty, counts as not given.

    Raises
    ------
    InputError
        Unknown option, or a value of the wrong type.
    """
    parser = OptionParser(config_class, description=description, allow_abbrev=False)  # type: ignore[arg-type]
    parser.add_argument("--config", metavar="FILE", help="YAML file with options; flags win over it.")
    flags = parser.given(_without_empty(sys.argv[1:] if argv is None else argv))
    from_file = _read_yaml(parser, flags.pop("config")) if flags.get("config") else {}
    defaults = {f.name: f.default for f in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    given = from_file | {name: value for name, value in flags.items() if value != defaults[name]}
    return config_class(**given), set(given)


def _without_empty(argv: list[str]) -> list[str]:
    """Drop `--flag ''` and `--flag=`: an optional parameter of MLproject that nobody set."""
    kept: list[str] = []
    for argument in argv:
        if argument == "" and kept and kept[-1].startswith("--"):
            kept.pop()
        elif not (argument.startswith("--") and argument.endswith("=")):
            kept.append(argument)
    return kept


def _read_yaml(parser: OptionParser, path: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"--config {path!r} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"--config {path!r}: accepted is a YAML mapping of option names to values")
    try:
        given = parser.of_mapping(content)
    except InputError as error:
        raise InputError(f"--config {path!r}: {error}") from error
    if "config" in given:
        raise InputError(f"--config {path!r}: a file cannot name another with 'config'")
    return given


def open_tracker(stage: str, **options: Any) -> "Tracker":
    """The run of this command (see `bertdyn.tracking.runs.open_run`).

    Under torchrun only the main process has one; the others get a folder that nobody reads.
    """
    from bertdyn.tracking.runs import open_run
    from bertdyn.tracking.tracker import Tracker

    if _is_main_process():
        return open_run(stage, **options)
    return Tracker(tempfile.mkdtemp(prefix="bertdyn-"))


def run(command: Callable[[], None]) -> None:
    """Run a command; input that is wrong ends it with one line and status 2, without a traceback."""
    level = logging.INFO if _is_main_process() else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    for name in ("alembic", "mlflow", "httpx", "sqlalchemy", "urllib3", "datasets", "accelerate"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.transformers").setLevel(logging.ERROR)  # it misses the licence of a model just made
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    transformers_logging.set_verbosity_error()  # that the head is new is no news here
    transformers_logging.disable_progress_bar()
    SigtermRaises().install()  # from the start: a run must not stay RUNNING, whenever the signal comes
    try:
        command()
    except InputError as error:
        sys.exit(_one_line(error, status=2))
    except FloatingPointError as error:
        sys.exit(_one_line(error, status=1))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        sys.exit(_one_line(error, status=2))
    except KeyboardInterrupt:
        sys.exit(130)


def _is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"  # set by torchrun


def _one_line(error: Exception, status: int) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return status
