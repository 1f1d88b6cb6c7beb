"""The process that serves the page. What the first view needs is imported, and the store opened, before anyone looks.

    BERTDYN_RUN_ID=<run id> python -m explorer [options of `streamlit run`]

Streamlit alone would do that while the first visitor waits.
"""

import sys
from contextlib import suppress
from pathlib import Path

from streamlit.web.cli import main as streamlit

import bertdyn.geometry.pca  # noqa: F401
import explorer.config
import explorer.dynamics  # noqa: F401
from bertdyn.errors import InputError
from bertdyn.tracking.store import connect

APP = Path(__file__).with_name("app.py")


def main() -> None:
    with suppress(InputError):  # the page says what is wrong
        connect()
    streamlit(["run", str(APP), *sys.argv[1:]])


if __name__ == "__main__":
    main()
