"""The command line of an ablation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ofdft_norm.commands import ablation
from ofdft_norm.example.ablation import AblationSettings


@pytest.fixture
def script() -> Any:
    return ablation


def test_options_become_settings(
    script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    received: list[AblationSettings] = []
    monkeypatch.setattr(script, "ablate", received.append)
    monkeypatch.setattr(script, "write_ablation", lambda result, folder: f"table in {folder}")
    assert script.main(["--output", "out"]) == 0
    options = "--output out --arms none both --epochs 3 --seeds 4 5 --folds 3 --input-scales 1 2 --overrides a=1 b=2"
    assert script.main(options.split()) == 0
    changed = {"arms": ("none", "both"), "epochs": 3, "seeds": (4, 5), "n_folds": 3, "input_scales": (1.0, 2.0)}
    assert received == [
        AblationSettings(Path("out")),
        AblationSettings(Path("out"), overrides=("a=1", "b=2"), **changed),
    ]
    assert capsys.readouterr().out == "table in out\n" * 2


def test_wrong_options_end_in_a_short_message(script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--output", str(tmp_path), "--folds", "2"]) == 1
    assert "--folds 2: expected at least 3" in capsys.readouterr().err
    assert script.main(["--output", str(tmp_path), "--overrides", "data/source=label_file"]) == 1
    assert "did you mean: data/source=label_files" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
