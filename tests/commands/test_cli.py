"""The command `ofdft-norm`: its subcommands, their help, and errors in one line."""

import os
import re
import runpy
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import ofdft_norm
from ofdft_norm.cli import COMMANDS, HYDRA_COMMANDS, format_usage, main
from ofdft_norm.config import PackedLabels
from ofdft_norm.errors import LabelFileError
from ofdft_norm.hydra_app.readable_errors import readable_errors
from tests.labelled_molecules import LabelledMolecules

ROOT = Path(__file__).parents[2]
QUIET = ("hydra/job_logging=disabled", "hydra/hydra_logging=disabled", "hydra.output_subdir=null")
SCRIPTS = {"train", "fit_statistics", "predict", "generate_labels", "pack_labels", "report"}
pytestmark = pytest.mark.usefixtures("loggers_stay_enabled")


def test_it_is_installed_and_lists_all_commands(capsys):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"ofdft-norm": f"{main.__module__}:{main.__name__}"}
    for words in ([], ["--help"]):
        assert main(words) == 0
        assert capsys.readouterr().out == format_usage() + "\n"
    assert all(f"\n  {name} " in format_usage() for name in COMMANDS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{ofdft_norm.__version__}\n"
    assert main(["trian"]) == 2
    assert "did you mean 'train'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_a_command(name, monkeypatch, capsys):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert f"ofdft-norm {name}" in shown.splitlines()[0]
    assert {"reads", "writes"} <= set(shown.split())


@pytest.mark.parametrize("name", HYDRA_COMMANDS)
def test_overrides_reach_hydra(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ofdft-norm", name, "--cfg", "job", "--package", "data", "data/loader=default"])
    main()
    assert yaml.safe_load(capsys.readouterr().out)["loader"]["batch_size"] == 32
    assert sys.argv[:2] == ["ofdft-norm", name]  # words with which Lightning starts a run's other processes


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_scripts_call_the_commands(script, monkeypatch):
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / "scripts" / f"{script}.py"), run_name="__main__")
    assert stopped.value.code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("labels xyz={xyz} output={out} grid_level=99", "grid_level"),
        ("labels xyz={xyz} output={xyz}", "water.xyz"),
        ("labels xyz={bad} output={out}", "latin.xyz"),
        ("labels xyz={xyz} output={out} workers=two", "workers"),
        ("labels xyz={xyz}", "output"),
        ("pack source=nowhere output={out}", "nowhere"),
        ("pack output={out} source=embedded pre_transforms=natrp", "did you mean 'natrep'"),
        ("report run_dir=nowhere", "nowhere"),
        ("report run_dir={run} ouput=page", "did you mean 'output'"),
        ("predict ckpt_path={xyz}", "water.xyz"),
        ("predict ckpt_path={xyz} output={run}", "output"),
    ],
)
def test_wrong_input_ends_in_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    xyz, bad, run = tmp_path / "water.xyz", tmp_path / "latin.xyz", tmp_path / "run"
    xyz.write_text("3\n\nO 0 0 0\nH 0 0.76 0.59\nH 0 -0.76 0.59\n")
    bad.write_bytes("1\nh\xf6he\nH 0 0 0\n".encode("latin-1"))
    run.mkdir()
    (run / "config.yaml").write_text("data: [\n")
    given = {"xyz": xyz, "bad": bad, "run": run, "out": tmp_path / "out"}
    with pytest.raises(SystemExit) as stopped:
        main(words.format(**given).split())
    assert stopped.value.code == 1
    error, *rest = [line for line in capsys.readouterr().err.splitlines() if "%|" not in line]
    assert error.startswith("error: ")
    assert message in error
    assert "Traceback" not in "\n".join(rest)


def test_jobs_of_an_array_pack_their_shards_into_one_folder(tmp_path):
    molecules = LabelledMolecules(tmp_path)
    words = [str(molecules.labels), str(tmp_path / "packed"), "--basis-info", molecules.basis_info, "--shard"]
    assert [main(["pack", *words, f"{k}/4"]) for k in (3, 1, 4, 2)] == [0, 0, 0, 0]
    source = PackedLabels(str(tmp_path / "packed" / "*"))
    found = sorted(Path(path).name for path in source.everything())
    assert found == sorted(path.name for path in molecules.labels.iterdir())
    assert len(list((tmp_path / "packed").iterdir())) > 1
    assert all(re.fullmatch(r"\d-of-4", path.name) for path in (tmp_path / "packed").iterdir())


def test_labels_are_packed_and_verified_with_either_form_of_options(tmp_path, capsys):
    molecules = LabelledMolecules(tmp_path, ("methyl_nitrite", "nitromethane"))
    labels, basis, folders = str(molecules.labels), molecules.basis_info, [str(tmp_path / name) for name in "ab"]
    named = [f"output={folders[0]}", f"source=[{labels}]", f"basis_info={basis}", "targets=[kin,kin_plus_xc]"]
    for form in (named, [labels, folders[1], "--basis-info", basis, "--pre-transforms", "natrep"]):
        assert main(["pack", *form, "verify=3"]) == 0
    printed = capsys.readouterr().out
    assert all(f"2 molecules in {folder}" in printed for folder in folders)
    assert [(tmp_path / name / "e_kin_plus_xc.npy").exists() for name in "ab"] == [True, False]


# --- wrong configurations -----


@pytest.fixture
def fail(monkeypatch, capsys, tmp_path) -> Callable[..., list[str]]:
    """Runs `ofdft-norm train` in this process, expects exit code 1, returns the lines of the message."""

    def run(*overrides: str) -> list[str]:
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        with pytest.raises(SystemExit) as caught:
            main(["train", *QUIET, f"hydra.run.dir={tmp_path}/run", *overrides])
        assert caught.value.code == 1
        return capsys.readouterr().err.splitlines()

    return run


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        ("data.rescaling.s_gard=0.1", "unknown config key .*; did you mean 'data.rescaling.s_grad'"),
        ("trainer.max_epoch=1 trainer=ddp", "unknown config key .*; did you mean 'trainer.max_epochs'"),
        ("sed=1", "unknown config key 'sed'; did you mean 'seed'"),
        ("data/reference=atomref", "unknown option 'atomref'.*; did you mean 'atom_ref'"),
        ("data/referense=linear", "unknown config group .*; did you mean 'data/reference'"),
        ("+data.rescaling.s_gard=0.1", "data.rescaling.s_gard = 0.1: "),
        ("data.rescaling.s_grad=a data/rescaling=equivariant", "data.rescaling.s_grad = 'a': "),
        ("ckpt_path=no.ckpt", "no.ckpt: "),
        ("data/source=structures25", "data.source.root: "),
        ("data/split=file data.split.file=no.yaml", "no.yaml: "),
    ],
)
def test_message_has_the_error_and_the_closest_name(fail, overrides, error):
    lines = fail(*overrides.split())
    assert re.match(f"error: {error}", lines[0])
    assert len(lines) <= 3
    assert "HYDRA_FULL_ERROR=1" in lines[-1]


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("data.split.file", "data/split=file (+data.split.file=... adds it)"),
        ("trainer.limit_val_batches", "trainer=debug (+trainer.limit_val_batches=... adds it)"),
        ("data.source.root", "data/source=structures25"),  # the source in use has no such argument
    ],
)
def test_a_key_of_another_option_names_the_option(fail, key, hint):
    assert fail(f"{key}=1")[0].endswith(f"exists only with {hint}")


def test_a_missing_extra_is_one_line(fail, monkeypatch):
    monkeypatch.setitem(sys.modules, "ase", None)
    line, how = fail("experiment=potential")  # imports it while Hydra makes the data module
    assert line.startswith("error: cannot import ase ")
    assert line.endswith("pip install 'ofdft-norm[ase]'")
    assert "HYDRA_FULL_ERROR=1" in how


def test_the_environment_variable_gives_the_traceback(monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(Exception, match=r"Could not override 'data\.rescaling\.s_gard'"):
        main(["train", *QUIET, "data.rescaling.s_gard=0.1"])


def test_other_errors_pass_the_decorator_and_the_environment_is_restored(monkeypatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    @readable_errors
    def mistaken() -> None:
        assert os.environ["HYDRA_FULL_ERROR"] == "1"
        raise ZeroDivisionError("a mistake in the code")

    before = dict(os.environ)
    with pytest.raises(ZeroDivisionError):
        mistaken()
    assert dict(os.environ) == before


def test_processes_of_a_run_are_readable_and_notes_are_shown(monkeypatch, capsys):
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
