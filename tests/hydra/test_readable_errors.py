"""A wrong configuration ends with a short message: the error, the closest valid name, the file."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ofdft_norm.cli import main
from ofdft_norm.errors import LabelFileError
from ofdft_norm.hydra_app.readable_errors import explain, find_config_dir, readable_errors

CONFIGS = Path(__file__).parents[2] / "configs"
RESCALING = "data/rescaling/dimension_wise.yaml"
QUIET = ("hydra/job_logging=disabled", "hydra/hydra_logging=disabled", "hydra.output_subdir=null")


@pytest.fixture
def fail(monkeypatch: Any, capsys: Any, tmp_path: Path) -> Callable[..., list[str]]:
    """Runs `ofdft-norm train` in this process, expects exit code 1, returns the lines of the message."""

    def run(*overrides: str) -> list[str]:
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        with pytest.raises(SystemExit) as caught:
            main(["train", *QUIET, f"hydra.run.dir={tmp_path}/run", *overrides])
        assert caught.value.code == 1
        return capsys.readouterr().err.splitlines()

    return run


@pytest.mark.parametrize(
    ("overrides", "error", "hint", "file"),
    [
        ("data.rescaling.s_gard=0.1", "unknown config key", "data.rescaling.s_grad", RESCALING),
        ("trainer.max_epoch=1 trainer=ddp", "unknown config key", "trainer.max_epochs", "trainer/cpu.yaml"),
        ("data.unti=eV experiment=potential", "unknown config key", "data.unit", "experiment/potential.yaml"),
        ("sed=1", "unknown config key 'sed'", "seed", "train.yaml"),
        ("data/reference=atomref", "unknown option 'atomref'", "data/reference=atom_ref", "data/reference"),
        ("data/referense=linear", "unknown config group", "data/reference", "data/reference"),
        ("data.rescaling.xyz=1", "unknown config key", None, RESCALING),
        ("+data.rescaling.s_gard=0.1", "data.rescaling.s_gard = 0.1: ", None, RESCALING),
        ("data.rescaling.s_grad=a data/rescaling=equivariant", "data.rescaling.s_grad = 'a': ", None, RESCALING),
        ("data.loader=3", "data.loader = 3: ", None, "data/loader/default.yaml"),
        ("model.width=wide", "model.width = 'wide': ", None, "model/density.yaml"),
        ("seed=-1", "seed = -1: ", None, "train.yaml"),
        ("data/source=structures25", "data.source.root: ", None, "data/source/structures25.yaml"),
        ("data/split=file data.split.file=no.yaml", "no.yaml: ", None, "data/split/file.yaml"),
        ("ckpt_path=no.ckpt", "no.ckpt: ", None, "train.yaml"),
    ],
)
def test_message_has_the_error_the_closest_name_and_the_file(
    fail: Callable[..., list[str]], overrides: str, error: str, hint: str | None, file: str
) -> None:
    lines = fail(*overrides.split())
    assert lines[0].startswith(f"error: {error}")
    assert [line.removeprefix("  did you mean: ") for line in lines if "mean: " in line] == ([hint] if hint else [])
    assert any(line.startswith("  config file") and line.endswith(f": {CONFIGS / file}") for line in lines)
    assert len(lines) <= 6
    assert "HYDRA_FULL_ERROR=1" in lines[-1]


@pytest.mark.parametrize(
    ("key", "option"), [("data.split.file", "data/split=file"), ("data.source.root", "data/source=structures25")]
)
def test_a_key_of_another_option_names_the_option(fail: Callable[..., list[str]], key: str, option: str) -> None:
    assert fail(f"{key}=1")[0].endswith(f"exists only with {option}")


def test_the_environment_variable_gives_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(Exception, match=r"Could not override 'data\.rescaling\.s_gard'"):
        main(["train", *QUIET, "data.rescaling.s_gard=0.1"])


def test_other_errors_pass_the_decorator_and_the_environment_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    @readable_errors
    def mistaken() -> None:
        assert os.environ["HYDRA_FULL_ERROR"] == "1"
        raise ZeroDivisionError("a mistake in the code")

    before = dict(os.environ)
    with pytest.raises(ZeroDivisionError):
        mistaken()
    assert dict(os.environ) == before


def test_processes_of_a_run_are_readable_and_notes_are_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    error = LabelFileError("water.zarr.zip: truncated")
    error.add_note("while reading water")

    @readable_errors
    def rank() -> None:
        raise error

    @readable_errors
    def launcher() -> None:
        monkeypatch.setattr(os, "environ", dict(os.environ))  # a child's copy
        rank()

    with pytest.raises(SystemExit):
        launcher()
    assert capsys.readouterr().err.splitlines()[:2] == ["error: water.zarr.zip: truncated", "while reading water"]


def test_an_error_of_another_application_is_printed_as_it_is() -> None:
    with pytest.raises(OmegaConfBaseException) as caught:
        OmegaConf.resolve(OmegaConf.create({"a": "${b}"}))
    assert "Interpolation key 'b' not found" in explain(caught.value)
    assert find_config_dir() == CONFIGS
