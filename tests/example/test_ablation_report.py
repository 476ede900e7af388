"""Table and plot of an ablation, from numbers that are averaged by hand."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from ofdft_norm.example.ablation import AblationResult, Run, RunResult
from ofdft_norm.example.ablation_report import (
    ablation_table,
    best_arm,
    epochs_to_half_way,
    errors_by_fold,
    write_ablation,
)
from ofdft_norm.example.label_errors import LabelErrors
from tests.printed_tables import check_printed


def errors(value: float) -> dict[str, float]:
    return {name: value + i for i, name in enumerate(LabelErrors.names("hartree"))}


def run(arm: str, fold: int, seed: int, test_error: float, curve: list[float]) -> RunResult:
    curves = {"energy_mae_mHa": curve, "gradient_mae_mHa": [value / 10 for value in curve]}
    return RunResult(Run(arm, fold, seed, 4, 1e-3, 5.0), {"test": errors(test_error), "val": errors(1.0)}, curves)


@pytest.fixture
def result() -> AblationResult:
    runs = [
        # the best arm's error after half of its four epochs is 40 in fold 0 and 30 in fold 1
        run("both", 0, 0, 10.0, [80.0, 40.0, 20.0, 10.0]),
        run("both", 0, 1, 14.0, [80.0, 40.0, 20.0, 10.0]),
        run("both", 1, 0, 20.0, [50.0, 30.0, 20.0, 10.0]),
        run("both", 1, 1, 28.0, [20.0, 30.0, 20.0, 10.0]),
        run("none", 0, 0, 100.0, [90.0, 80.0, 40.0, 35.0]),
        run("none", 0, 1, 100.0, [90.0, 80.0, 70.0, 41.0]),
        run("none", 1, 0, 300.0, [90.0, 80.0, 70.0, 50.0]),
        run("none", 1, 1, 300.0, [90.0, 80.0, 70.0, 50.0]),
    ]
    chosen = {"none": (1e-2, 0.5), "both": (3e-3, 5.0)}
    return AblationResult(chosen, runs, {"reference only, no network": [errors(500.0), errors(700.0)]})


def test_errors_are_means_over_seeds_in_each_fold(result: AblationResult) -> None:
    found = {name: values.tolist() for name, values in errors_by_fold(result, "energy_mae_mHa").items()}
    assert found == {"reference only, no network": [500.0, 700.0], "none": [100.0, 300.0], "both": [12.0, 24.0]}
    assert best_arm(result, "energy_mae_mHa") == "both"


def test_speed_is_measured_at_the_best_arms_half_way(result: AblationResult) -> None:
    # both: 2, 2, 2, 1; none: 3, never, never, never
    assert epochs_to_half_way(result, "energy_mae_mHa") == {"both": 2.0, "none": float("inf")}


def test_table_holds_mean_and_spread_over_folds(result: AblationResult) -> None:
    table = ablation_table(result)
    check_printed(table)
    assert "over 2 folds of molecules, 2 seeds in each" in table
    of_errors, of_learning = (
        {line.split("  ")[0]: line.split() for line in t.splitlines()} for t in table.split("\n\n")
    )
    assert of_errors["reference only, no network"][4:6] == ["600.0", "(141.4)"]
    assert of_errors["both"][1:3] == ["18.0", "(8.5)"]
    assert of_errors["none"][1:3] == ["200.0", "(141.4)"]
    assert of_learning["both"][1:] == ["2", "2", "0.003", "5"]
    assert of_learning["none"][1:] == ["never", "never", "0.01", "0.5"]


def test_other_units_and_large_errors_fit_on_a_screen(result: AblationResult) -> None:
    def in_ev(found: dict[str, float]) -> dict[str, float]:
        return {name: 1e5 * value for name, value in zip(LabelErrors.names("eV"), found.values(), strict=True)}

    runs = [
        replace(
            r,
            errors={split: in_ev(found) for split, found in r.errors.items()},
            curves={f"{quantity}_meV": r.curves[f"{quantity}_mHa"] for quantity in ("energy_mae", "gradient_mae")},
        )
        for r in result.runs
    ]
    baselines = {"composition and E_xc, no network": [in_ev(errors(5.0)), in_ev(errors(7.0))]}
    table = ablation_table(AblationResult(result.chosen, runs, baselines, "eV"))
    check_printed(table)
    assert "test errors in meV" in table


def test_files_hold_table_folds_and_plot(result: AblationResult, tmp_path: Path) -> None:
    table = write_ablation(result, tmp_path)
    assert (tmp_path / "ablation.txt").read_text() == table + "\n"
    with (tmp_path / "ablation.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * len(LabelErrors.names("hartree"))
    assert rows[1] == {
        "predictor": "none",
        "error": "energy_mae_mHa",
        "mean": "200.0",
        "std": str(2**0.5 * 100),
        "folds": "100.0 300.0",
    }
    assert (tmp_path / "ablation.png").read_bytes().startswith(b"\x89PNG")
