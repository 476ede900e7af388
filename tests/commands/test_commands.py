"""The command `ofdft-norm` leads to the functions that `scripts/` calls."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import ofdft_norm
from ofdft_norm.commands import COMMANDS, main

ROOT = Path(__file__).parents[2]


def test_it_is_what_installing_puts_on_the_path() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"ofdft-norm": f"{main.__module__}:{main.__name__}"}


def test_every_command_has_a_script_of_the_same_function() -> None:
    scripts = {path.stem: path.read_text() for path in (ROOT / "scripts").glob("*.py")}
    assert set(scripts) == {module for module, *_ in COMMANDS.values()}
    for module, text in scripts.items():
        assert f"from ofdft_norm.commands.{module} import main\n" in text
        assert len(text.splitlines()) <= 9


def test_help_lists_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"]):
        assert main(words) == 0
        shown = capsys.readouterr().out
        assert [line.split()[0] for line in shown.splitlines() if line.startswith("  ")] == list(COMMANDS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{ofdft_norm.__version__}\n"


def test_an_unknown_command_is_named_with_the_closest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert "error: ofdft-norm has no command 'trian'; did you mean 'train'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name, (_, _, reads_overrides) in COMMANDS.items() if reads_overrides])
def test_overrides_reach_hydra(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["ofdft-norm", name, "--cfg", "job", "--package", "data", "data/loader=default"])
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    main()
    assert yaml.safe_load(capsys.readouterr().out)["loader"]["batch_size"] == 32
    assert Path(sys.argv[0]).is_file()  # what Lightning starts a run's other processes with


@pytest.mark.parametrize("name", [name for name, (_, _, reads_overrides) in COMMANDS.items() if not reads_overrides])
def test_options_reach_the_other_commands(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["ofdft-norm", name, "--help"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: ofdft-norm {name} ")
