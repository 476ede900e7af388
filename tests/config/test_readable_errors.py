"""A wrong configuration ends with a short message: what is wrong, the closest valid name, the file."""

import os
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ofdft_norm.config.readable_errors import config_files, explain, readable_errors
from ofdft_norm.errors import LabelFileError

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
DIMENSION_WISE = "data/rescaling/dimension_wise.yaml"
UNKNOWN = "unknown config key {!r}"
QUIET = ("hydra/job_logging=disabled", "hydra/hydra_logging=disabled", "hydra.output_subdir=null")
pytestmark = pytest.mark.usefixtures("loggers_stay_enabled")


@pytest.fixture
def fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., list[str]]:
    """Runs `scripts/train.py` in this process, expects exit code 1, returns the lines that it printed."""

    def run(*overrides: str) -> list[str]:
        script = str(ROOT / "scripts" / "train.py")
        monkeypatch.setattr("sys.argv", [script, *QUIET, f"hydra.run.dir={tmp_path}/run", *overrides])
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(script, run_name="__main__")
        assert caught.value.code == 1
        lines = capsys.readouterr().err.splitlines()
        # before it, where the job had started, stands what Lightning and Hydra say
        return lines[next(i for i, line in enumerate(lines) if line.startswith("error:")) :]

    return run


@pytest.mark.parametrize(
    ("overrides", "error", "hint", "file"),
    [
        ("data.rescaling.s_gard=0.1", UNKNOWN.format("data.rescaling.s_gard"), "data.rescaling.s_grad", DIMENSION_WISE),
        (
            "+data.rescaling.s_gard=0.1",
            "data.rescaling.s_gard = 0.1: no such setting; did you mean 's_grad'?",
            None,
            DIMENSION_WISE,
        ),
        ("s_grad=0.1", UNKNOWN.format("s_grad"), "data.rescaling.s_grad", DIMENSION_WISE),
        (
            "trainer.max_epoch=1 trainer=ddp",
            UNKNOWN.format("trainer.max_epoch"),
            "trainer.max_epochs",
            "trainer/cpu.yaml",
        ),
        ("data.rescalin.s_grad=1", UNKNOWN.format("data.rescalin"), "data.rescaling", DIMENSION_WISE),
        ("sed=1", UNKNOWN.format("sed"), "seed", "train.yaml"),
        (
            "data.rescaling.s_grad=-0.05",
            "data.rescaling.s_grad = -0.05: should be a positive number, 1e-100 ... 1e+100",
            None,
            DIMENSION_WISE,
        ),
        (
            "data.rescaling.s_grad=abc data/rescaling=equivariant",
            "data.rescaling.s_grad = 'abc': should be a valid number",
            None,
            DIMENSION_WISE,
        ),
        (
            "data.rescaling.s_grad=0 data.loader.batch_size=0",
            "data.rescaling.s_grad = 0: should be a positive number, 1e-100 ... 1e+100",
            None,
            DIMENSION_WISE,
        ),
        ("data.loader=3", "data.loader = 3: should be an instance of LoaderConfig", None, "data/loader/default.yaml"),
        ("model.width=wide", "model.width = 'wide': should be a valid integer", None, "model/density.yaml"),
        ("seed=-1", "seed = -1: should be greater than or equal to 0", None, "train.yaml"),
        (
            "data/source=structures25",
            "data.source.root: has no value, and needs one (config: data.source.root=...)",
            None,
            "data/source/structures25.yaml",
        ),
        (
            "data/split=file data.split.file=no.yaml",
            "no.yaml: no such split file (config: data.split.file)",
            None,
            "data/split/file.yaml",
        ),
        ("ckpt_path=no.ckpt", "no.ckpt: no such checkpoint (config: ckpt_path)", None, "train.yaml"),
    ],
)
def test_message_has_the_error_the_closest_key_and_the_file(
    fail: Callable[..., list[str]], overrides: str, error: str, hint: str | None, file: str
) -> None:
    lines = fail(*overrides.split())
    assert lines[0] == f"error: {error}"
    assert (f"  did you mean: {hint}" in lines) is (hint is not None)
    assert f"  config file: {CONFIGS / file}" in lines
    assert len(lines) <= 6
    assert "HYDRA_FULL_ERROR=1" in lines[-1]


@pytest.mark.parametrize(
    ("override", "error", "hint", "folder"),
    [
        (
            "data/reference=atomref",
            "unknown option 'atomref' of the config group 'data/reference'",
            "data/reference=atom_ref",
            "data/reference",
        ),
        (
            "experiment=ablatoin",
            "unknown option 'ablatoin' of the config group 'experiment'",
            "experiment=ablation",
            "experiment",
        ),
        ("data/referense=linear", "unknown config group 'data/referense'", "data/reference", "data/reference"),
    ],
)
def test_message_for_groups_and_options_names_the_closest_one_and_the_folder(
    fail: Callable[..., list[str]], override: str, error: str, hint: str, folder: str
) -> None:
    lines = fail(override)
    assert lines[:2] == [f"error: {error}", f"  did you mean: {hint}"]
    assert f"  config files: {CONFIGS / folder}" in lines


def test_a_key_like_no_other_gets_the_list_of_valid_ones(fail: Callable[..., list[str]]) -> None:
    lines = fail("data.rescaling.xyz=1")
    assert lines[1].startswith(
        "  valid keys of data.rescaling: epsilon, equivariant, s_coeff, s_grad (+data.rescaling.xyz="
    )
    lines = fail("data.rescaling.xyz=1", "data/rescaling=none")
    assert "  valid keys of data.rescaling: none (+data.rescaling.xyz=... adds one)" in lines
    assert f"  config file: {CONFIGS / 'data/rescaling/none.yaml'}" in lines


@pytest.mark.parametrize(
    ("key", "option"),
    [
        ("data.split.file", "data/split=file"),
        ("data.reference.ridge", "data/reference=linear"),
        ("data.source.split_key", "data/source=ase"),
        ("data.source.root", "data/source=structures25"),
    ],
)
def test_a_key_of_another_option_names_the_option(fail: Callable[..., list[str]], key: str, option: str) -> None:
    assert fail(f"{key}=1")[0] == f"error: config key {key!r} is there only with {option}"


def test_a_value_that_is_needed_is_asked_for(fail: Callable[..., list[str]]) -> None:
    lines = fail("data/source=label_files", "data.source.paths=labels")
    assert lines[0] == (
        "error: data.source.basis_info: has no value, and needs one (config: data.source.basis_info=...)"
    )


def test_full_error_gives_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    script = str(ROOT / "scripts" / "train.py")
    monkeypatch.setattr("sys.argv", [script, *QUIET, "data.rescaling.s_gard=0.1"])
    with pytest.raises(Exception, match=r"Could not override 'data\.rescaling\.s_gard'"):
        runpy.run_path(script, run_name="__main__")
    assert capsys.readouterr().err == ""


def test_other_errors_pass_and_the_environment_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    @readable_errors
    def main() -> None:
        assert os.environ["HYDRA_FULL_ERROR"] == "1"
        raise ZeroDivisionError("a mistake in the code")

    before = dict(os.environ)
    with pytest.raises(ZeroDivisionError):
        main()
    assert dict(os.environ) == before


def test_processes_started_by_a_run_are_readable_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @readable_errors
    def rank() -> None:
        raise LabelFileError("water.zarr.zip: truncated")

    @readable_errors
    def launcher() -> None:
        monkeypatch.setattr(os, "environ", dict(os.environ))  # a child's copy
        rank()

    with pytest.raises(SystemExit):
        launcher()
    assert capsys.readouterr().err.splitlines()[0] == "error: water.zarr.zip: truncated"


def test_an_error_without_any_known_key_is_printed_as_it_is() -> None:
    with pytest.raises(OmegaConfBaseException) as caught:
        OmegaConf.resolve(OmegaConf.create({"a": "${b}"}))
    assert "Interpolation key 'b' not found" in explain(caught.value)


def test_keys_are_those_of_the_scripts_own_config_file() -> None:
    assert config_files(script="train")["seed"] == CONFIGS / "train.yaml"
    assert "seed" not in config_files(script="fit_statistics")
    assert config_files(script="another")["seed"] == CONFIGS / "train.yaml"
