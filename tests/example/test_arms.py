"""The table that ends a sweep, from results that are written by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from ofdft_norm.example.arms import ARMS, MEANINGS, TableOfArms, arm_names, read_runs, table_of_runs
from ofdft_norm.example.label_errors import LabelErrors
from ofdft_norm.example.results import ResultRow, write_csv
from tests.printed_tables import check_printed

UNIT = "eV"


def write_run(folder: Path, number: int, overrides: tuple[str, ...], model_error: float) -> None:
    def row(split: str, predictor: str, error: float) -> ResultRow:
        errors = dict.fromkeys(LabelErrors.names(UNIT), error)
        return ResultRow(split, predictor, 2, 7, {**errors, "gradient_norm_meV": math.nan}, UNIT)

    rows = [
        # the same in every run, but for the rounding of labels
        row("test", "constant per element", 300.0 * (1 + 1e-6 * number)),
        row("test", "reference only", 50.0 + number),
        row("test", "model", model_error),
    ]
    write_csv(rows, folder / str(number) / "results.csv")
    OmegaConf.save({"data": {"unit": UNIT}}, folder / str(number) / "config.yaml")
    (folder / str(number) / ".hydra").mkdir()
    hydra = {"job": {"num": number}, "overrides": {"task": list(overrides)}}
    OmegaConf.save({"hydra": hydra}, folder / str(number) / ".hydra" / "hydra.yaml")


def test_every_arm_has_its_row_under_the_baselines_that_all_share(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = list(ARMS)
    for number in (10, 2, 0, 1):
        arm = arms[number % len(arms)]
        write_run(tmp_path, number, ("experiment=ablation", *ARMS[arm]), 100.0 + number)
    table = table_of_runs(read_runs(tmp_path))
    check_printed(table)
    rows = {line.rstrip().split("  ")[0]: line.split()[-5:] for line in table.splitlines() if not line.startswith("  ")}
    names = [arms[number % len(arms)] for number in (0, 1, 2, 10)]
    assert list(rows)[1:] == ["test: 2 molecules, 7 samples", "constant per element, no network", *names]
    assert rows["constant per element, no network"][0] == "300.0"
    assert [rows[name][0] for name in names] == ["100.0", "101.0", "102.0", "110.0"]
    assert {row[-1] for name, row in rows.items() if name in names} == {"-"}

    TableOfArms().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    assert (tmp_path / "results.txt").read_text() == table + "\n"
    assert table in capsys.readouterr().out


def test_a_sweep_without_results_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    TableOfArms().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


def test_runs_are_named_by_what_they_do_not_share() -> None:
    overrides = [(*settings, "seed=1") for settings in ARMS.values()]
    assert arm_names(overrides) == list(ARMS)
    assert arm_names([("seed=1", "model.width=8"), ("seed=1", "model.width=16")]) == ["model.width=8", "model.width=16"]
    assert set(MEANINGS) == set(ARMS)
