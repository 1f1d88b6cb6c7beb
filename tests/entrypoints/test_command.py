import os
import subprocess
import sys

import pytest

from bertdyn.errors import InputError
from bertdyn.steps.config import FineTuneConfig
from entrypoints.command import parse


def _parse(*argv):
    return parse(FineTuneConfig, "a test", list(argv))


def test_default_then_file_then_flag(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text("learning_rate: 2e-5\nnum_train_epochs: 7\nfrom_scratch: true\ndata_dir: null\n")
    config, given = _parse("--config", str(file), "--num-train-epochs", "9")
    assert (config.learning_rate, config.num_train_epochs, config.from_scratch) == (2e-5, 9, True)
    assert config.weight_decay == 0.01
    assert given == {"learning_rate", "num_train_epochs", "from_scratch"}


def test_what_mlflow_run_passes_counts_as_not_given(tmp_path):
    """It passes every declared default as a flag, and optional ones as an empty string."""
    file = tmp_path / "study.yaml"
    file.write_text("num_train_epochs: 7\n")
    config, given = _parse(
        "--num_train_epochs", "3", "--data_dir", "", "--seeds=", "--seed", "4", "--config", str(file)
    )
    assert config.num_train_epochs == 7
    assert config.data_dir is None
    assert given == {"num_train_epochs", "seed"}


def test_bools_take_a_value():
    assert _parse("--store_features", "false")[0].store_features is False
    assert _parse("--store_attention", "True")[0].store_attention is True


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--learning_rte", "3"], "unknown option --learning_rte: did you mean --learning_rate"),
        (["--zzz=1"], "unknown option --zzz: --help lists"),
        (["--num_train_epochs", "abc"], "--num_train_epochs.*invalid int value: 'abc'"),
        (["--store_features", "perhaps"], "perhaps"),
        (["--num_train_epochs", "0"], "accepted are values from 1"),
        (["--config", "/absent.yaml"], "cannot be read"),
        (["--seeds", "1,1"], "accepted are at least two different"),
        (["--seeds", "one"], "accepted are at least two different"),
        (["--freeze_layers", "-2"], "accepted are -1"),
        (["--gradual_unfreezing", "true"], "needs something frozen and an end"),
        (["--config_overrides", "hidden_size=3"], "needs --from_scratch true"),
        (["--early_stopping_patience", "3"], "accepted are values below"),
        (["--store_attention", "true", "--store_features", "false"], "needs --store_features true"),
    ],
)
def test_wrong_options_are_one_line(argv, message):
    with pytest.raises(InputError, match=message):
        _parse(*argv)


def test_wrong_yaml_names_the_file(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text("learning_rte: 3\n")
    with pytest.raises(InputError, match=r"study.yaml.*unknown option --learning_rte"):
        _parse("--config", str(file))
    file.write_text("- a list\n")
    with pytest.raises(InputError, match="mapping"):
        _parse("--config", str(file))


def test_help_is_quick_and_teaches():
    def seconds() -> tuple[float, str]:
        """Of processor time: that is what a person waits for on a machine that is not busy."""
        start = os.times()
        done = subprocess.run([sys.executable, "-m", "entrypoints.fine_tune", "--help"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        end = os.times()
        return end.children_user + end.children_system - start.children_user - start.children_system, done.stdout

    (first, text), (second, _) = seconds(), seconds()
    assert min(first, second) < 1.5
    assert "peak learning rate" in text
    assert "(default: 5e-05)" in text


def test_heavy_libraries_are_imported_only_when_they_are_needed():
    code = (
        "import sys, entrypoints.fine_tune, entrypoints.main; "
        "print([m for m in ('torch', 'mlflow', 'pandas') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
