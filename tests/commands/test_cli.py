"""The command `ofdft-norm`: its subcommands, their help, and errors in one line."""

from __future__ import annotations

import re
import runpy
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import ofdft_norm
from ofdft_norm.cli import COMMANDS, HYDRA_COMMANDS, format_usage, main
from ofdft_norm.config import PackedLabels
from tests.labelled_molecules import LabelledMolecules

ROOT = Path(__file__).parents[2]
SCRIPTS = {"train", "fit_statistics", "predict", "generate_labels", "pack_labels", "report"}
pytestmark = pytest.mark.usefixtures("loggers_stay_enabled")


def test_it_is_installed_and_lists_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
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
def test_help_explains_a_command(name: str, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert f"ofdft-norm {name}" in shown.splitlines()[0]
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
        ("labels xyz={xyz} output={out} grid_level=99", "grid_level"),
        ("labels xyz={xyz} output={xyz}", "water.xyz"),
        ("labels xyz={bad} output={out}", "latin.xyz"),
        ("labels xyz={xyz} output={out} workers=two", "workers"),
        ("labels xyz={xyz}", "output"),
        ("pack source=nowhere output={out}", "nowhere"),
        ("pack output={out} source=embedded pre_transforms=natrp", "did you mean 'natrep'"),
        ("pack embedded {out} --verify 0", "verify"),
        ("report run_dir=nowhere", "nowhere"),
        ("report run_dir={run} ouput=page", "did you mean 'output'"),
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


def test_jobs_of_an_array_pack_their_shards_into_one_folder(tmp_path: Path) -> None:
    molecules = LabelledMolecules(tmp_path)
    words = [str(molecules.labels), str(tmp_path / "packed"), "--basis-info", molecules.basis_info, "--shard"]
    assert [main(["pack", *words, f"{k}/4"]) for k in (3, 1, 4, 2)] == [0, 0, 0, 0]
    source = PackedLabels(str(tmp_path / "packed" / "*"))
    found = sorted(Path(path).name for path in source.everything())
    assert found == sorted(path.name for path in molecules.labels.iterdir())
    assert len(list((tmp_path / "packed").iterdir())) > 1
    assert all(re.fullmatch(r"\d-of-4", path.name) for path in (tmp_path / "packed").iterdir())


def test_labels_are_packed_and_verified_with_either_form_of_options(tmp_path: Path, capsys: Any) -> None:
    molecules = LabelledMolecules(tmp_path, ("methyl_nitrite", "nitromethane"))
    labels, basis, folders = str(molecules.labels), molecules.basis_info, [str(tmp_path / name) for name in "ab"]
    named = [f"output={folders[0]}", f"source=[{labels}]", f"basis_info={basis}", "targets=[kin,kin_plus_xc]"]
    for form in (named, [labels, folders[1], "--basis-info", basis, "--pre-transforms", "natrep"]):
        assert main(["pack", *form, "verify=3"]) == 0
    printed = capsys.readouterr().out
    assert all(f"2 molecules in {folder}" in printed for folder in folders)
    assert [(tmp_path / name / "e_kin_plus_xc.npy").exists() for name in "ab"] == [True, False]
