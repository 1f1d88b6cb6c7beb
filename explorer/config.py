"""The options of the explorer."""

# HfArg returns a dataclasses.Field, which stands for the default value.
# mypy: disable-error-code="assignment"

from dataclasses import dataclass
from typing import Optional

from transformers.hf_argparser import HfArg

from bertdyn.errors import InputError

ASKED = "BERTDYN_RUN_ID"
"""Environment variable that tells the page which run to begin with."""


@dataclass
class ExploreConfig:
    """What is looked at first, and where the page is served."""

    run_id: Optional[str] = HfArg(
        default=None, help="The run to begin with, of any step; others are chosen in the page. Default: the newest."
    )
    host: str = HfArg(
        default="127.0.0.1",
        help="Address to listen at. There is no password: whoever reaches it reads all runs of the tracking server.",
    )
    port: int = HfArg(default=8501, help="Port to listen at.")

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise InputError(f"--port {self.port}: accepted are 1 to 65535")
