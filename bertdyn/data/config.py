"""The data flags: which texts, which part sizes, how they are cut.

Only dataclasses here, so that `--help` needs neither torch nor pandas. Every field has a default and
`__post_init__` passes on to `super()`, so that a step's configuration can inherit from `DataConfig` next
to other such groups of flags.
"""

# HfArg returns a dataclasses.Field, which stands for the default value.
# mypy: disable-error-code="assignment"

from dataclasses import dataclass

from transformers.hf_argparser import HfArg

from bertdyn.errors import InputError

PARTS = ("train", "validation", "probe", "test")
MIN_LENGTH = 3  # one word between the two special tokens
MIN_QA_ROOM = 5  # beside the overlap: three special tokens, one of the question, one that is new in the window
DEFAULT_DOC_STRIDE = 128
DEFAULT_LENGTHS = {"classification": 128, "question-answering": 384}


@dataclass
class DataConfig:
    """Which texts, how many of them, and how they are cut."""

    dataset: str = HfArg(
        default="synthetic",
        help="Texts and labels: synthetic, sst2, imdb, news, spotify, flue_cls; squad_v2 (questions to answer "
        "with a span of their text, or not at all); a .csv, .tsv, .jsonl, .ndjson, .json (one object a line) or "
        ".parquet file; or a hub dataset id, with ':name' for one of its configurations (nyu-mll/glue:sst2).",
    )
    data_dir: str | None = HfArg(
        default=None,
        help="Folder that holds the files of the dataset. Default for a named dataset: its folder under $BERTDYN_DATA.",
    )
    test_file: str | None = HfArg(
        default=None,
        help="Labelled test file that belongs to a dataset given as a file. "
        "Default: 10 percent of the rows become the test part.",
    )
    text_column: str | None = HfArg(
        default=None,
        help="Column with the text, for a file or hub dataset. Default: 'text', or else 'sentence'.",
    )
    text_pair_column: str | None = HfArg(
        default=None,
        help="Column with the second text of a pair, for a file or hub dataset. Default: single texts.",
    )
    label_column: str | None = HfArg(
        default=None,
        help="Column with the label (integers or words), for a file or hub dataset. Default: 'label'.",
    )
    # Not `int | None`: once made, a configuration holds the number.
    max_length: int = HfArg(
        default=None,
        help=f"Longest input in tokens, special tokens included; longer texts are cut and counted, for squad_v2 "
        f"split into windows. At least {MIN_LENGTH}. Default: 128; 384 for squad_v2.",
    )
    doc_stride: int = HfArg(
        default=DEFAULT_DOC_STRIDE,
        help="squad_v2: tokens that a window of a long text shares with the window before it, at least 0.",
    )
    max_train_samples: int | None = HfArg(
        default=None,
        help="Use this many training examples. Subsets are nested: the 1,000 lie within the 5,000. "
        "For synthetic it may exceed the default of 2,000. Default: all.",
    )
    max_validation_samples: int | None = HfArg(
        default=None,
        help="Use this many validation examples (early stopping and selection), nested. Default: all.",
    )
    max_probe_samples: int | None = HfArg(
        default=None,
        help="Use this many probe examples (features, probes, similarity; never trained on), nested. Default: all.",
    )
    max_test_samples: int | None = HfArg(
        default=None,
        help="Use this many test examples (scored once at the end), nested. Default: all.",
    )
    clean_text: bool = HfArg(
        default=False,
        help="Lower-case, remove URLs, HTML tags, punctuation, digits and English stop words, but keep "
        "negations. Holds for every part and every later step.",
    )
    data_seed: int = HfArg(
        default=0,
        help="Seed of the splits and subsets (and of the synthetic texts), at least 0. Apart from --seed, so "
        "that all training seeds of a study see the same parts.",
    )

    def __post_init__(self) -> None:
        following = getattr(super(), "__post_init__", None)
        if following is not None:
            following()
        if not self.dataset:
            raise InputError("--dataset '': empty; accepted: a named dataset, a file or a hub dataset id")
        if self.max_length is None:
            self.max_length = DEFAULT_LENGTHS[self.task]
        if self.max_length < MIN_LENGTH:
            raise InputError(f"--max_length {self.max_length}: no room for a word; accepted: {MIN_LENGTH} or more")
        if self.doc_stride < 0:
            raise InputError(f"--doc_stride {self.doc_stride}: negative; accepted: 0 or more")
        if self.task == "question-answering" and self.doc_stride > self.max_length - MIN_QA_ROOM:
            raise InputError(
                f"--doc_stride {self.doc_stride}: leaves no room in windows of --max_length {self.max_length} tokens; "
                f"accepted: less than max_length by {MIN_QA_ROOM} or more, or a larger --max_length"
            )
        if self.data_seed < 0:
            raise InputError(f"--data_seed {self.data_seed}: negative; accepted: 0 or more")
        for part in PARTS:
            limit = self.max_samples(part)
            if limit is not None and limit < 1:
                raise InputError(f"--max_{part}_samples {limit}: no row; accepted: 1 or more, or left out for all")

    @property
    def task(self) -> str:
        """What the dataset is for: "classification" or "question-answering"."""
        return "question-answering" if self.dataset == "squad_v2" else "classification"

    def max_samples(self, part: str) -> int | None:
        """The limit of one part by its name; None means all."""
        return getattr(self, f"max_{part}_samples")
