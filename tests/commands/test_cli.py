"""The command `ofdft-norm`: its subcommands, their help, and errors in one line."""

from __future__ import annotations

import runpy
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import ofdft_norm
from ofdft_norm.cli import COMMANDS, HYDRA_COMMANDS, main, usage
from tests.labelled_molecules import LabelledMolecules

ROOT = Path(__file__).parents[2]
SCRIPTS = {"train", "fit_statistics", "predict", "generate_labels", "pack_labels", "report"}
pytestmark = pytest.mark.usefixtures("loggers_stay_enabled")


def test_it_is_installed_and_lists_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"ofdft-norm": f"{main.__module__}:{main.__name__}"}
    for words in ([], ["--help"]):
        assert main(words) == 0
        assert capsys.readouterr().out == usage() + "\n"
    assert all(f"\n  {name} " in usage() for name in COMMANDS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{ofdft_norm.__version__}\n"
    assert main(["trian"]) == 2
    assert "did you mean 'train'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_a_command(name: str, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert f"ofdft-norm {name}" in shown.splitlines()[0]
    if name in HYDRA_COMMANDS:
        assert {"reads", "writes"} <= set(shown.split())


@pytest.mark.parametrize("name", HYDRA_COMMANDS)
def test_overrides_reach_hydra(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["ofdft-norm", name, "--cfg", "job", "--package", "data", "data/loader=default"])
    main()
    assert yaml.safe_load(capsys.readouterr().out)["loader"]["batch_size"] == 32
    assert sys.argv[:2] == ["ofdft-norm", name]  # words with which Lightning starts a run's other processes


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_scripts_call_the_commands(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / "scripts" / f"{script}.py"), run_name="__main__")
    assert stopped.value.code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("labels none.xyz --output {out}", "none.xyz"),
        ("labels {xyz} --output {out} --grid-level 99", "grid_level"),
        ("labels {xyz} --output {out} --damping 5", "damping"),
        ("labels {xyz} --output {xyz}", "water.xyz"),
        ("labels {bad} --output {out}", "latin.xyz"),
        ("pack nowhere {out}", "nowhere"),
        ("pack embedded {out} --pre-transforms natrp", "did you mean 'natrep'"),
        ("pack embedded {out} --verify 0", "verify"),
        ("report nowhere", "nowhere"),
        ("report {run}", "config.yaml"),
        ("predict ckpt_path={xyz}", "water.xyz"),
        ("predict ckpt_path={xyz} output={run}", "output"),
    ],
)
def test_wrong_input_ends_in_one_line(words: str, message: str, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
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


def test_labels_are_packed_and_verified_with_either_form_of_options(tmp_path: Path, capsys: Any) -> None:
    molecules = LabelledMolecules(tmp_path, ("methyl_nitrite", "nitromethane"))
    first = [f"basis_info={molecules.basis_info}", "targets=[kin,kin_plus_xc]"]
    for number, form in enumerate([first, ["--basis-info", molecules.basis_info]]):
        output = str(tmp_path / f"packed_{number}")
        assert main(["pack", str(molecules.labels), output, *form, "--pre-transforms", "natrep", "verify=3"]) == 0
        assert f"2 molecules in {output}" in capsys.readouterr().out
    assert (tmp_path / "packed_0" / "e_kin_plus_xc.npy").exists()
    assert not (tmp_path / "packed_1" / "e_kin_plus_xc.npy").exists()
