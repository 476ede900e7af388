"""An ablation in small: same search for every arm, folds without overlap, runs that are not repeated."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ofdft_norm.errors import ConfigError
from ofdft_norm.example import ablation
from ofdft_norm.example.ablation import (
    AblationSettings,
    Run,
    RunResult,
    ablate,
    choose,
    folds,
    global_std,
)
from ofdft_norm.example.arms import ARMS, GLOBAL_SCALE
from tests.processes import context


@pytest.fixture(scope="module")
def molecules(tmp_path_factory: pytest.TempPathFactory, labelled_molecules: Any) -> Any:
    return labelled_molecules(tmp_path_factory.mktemp("ablation"))


@pytest.fixture(scope="module")
def settings(molecules: Any) -> AblationSettings:
    overrides = (
        "data/source=label_files",
        f"data.source.paths={molecules.labels}",
        f"data.source.basis_info={molecules.basis_info}",
        f"data.statistics.dir={molecules.folder / 'statistics'}",
        "data.loader.batch_size=16",
        "model.width=8",
        "model.rank=2",
        "model.n_layers=0",
        "+trainer.limit_train_batches=2",
    )
    return AblationSettings(
        molecules.folder / "output",
        overrides,
        arms=(GLOBAL_SCALE, "both"),
        epochs=2,
        search_epochs=1,
        learning_rates=(1e-2,),
        input_scales=(1.0, 5.0),
        n_folds=3,
        seeds=(0,),
        workers=1,
    )


@pytest.fixture(scope="module")
def result(settings: AblationSettings) -> ablation.AblationResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "0")  # seed_everything writes it; undone at the end
        patch.setenv("PL_SEED_WORKERS", "0")
        return ablate(settings)


def test_every_arm_is_searched_alike_and_trained_on_every_fold(
    settings: AblationSettings, result: ablation.AblationResult
) -> None:
    files = sorted(path.stem for path in (settings.output / "runs").glob("*_rate*"))
    search = [Run(arm, 0, 0, 1, 1e-2, scale).name for arm in settings.arms for scale in (1.0, 5.0)]
    runs = [Run(arm, fold, 0, 2, *result.chosen[arm]).name for arm in settings.arms for fold in range(3)]
    assert files == sorted(search + runs)
    assert [r.run.name for r in result.runs] == sorted(runs, key=lambda name: name.split("fold")[1][0])
    for run in result.runs:
        assert all(len(curve) == 2 and np.isfinite(curve).all() for curve in run.curves.values())
        assert run.errors["val"]["energy_mae_mHa"] == pytest.approx(run.curves["energy_mae_mHa"][-1], rel=1e-4)
        assert np.isfinite(list(run.errors["test"].values())).all()
    names = ("constant per element", "reference only", "composition and E_xc")
    assert set(result.baselines) == {f"{name}, no network" for name in names}
    assert not set(result.baselines) & set(ARMS)
    assert all(len(folds) == 3 for folds in result.baselines.values())


def test_runs_that_are_there_are_not_repeated_and_missing_ones_give_the_same_in_another_process(
    settings: AblationSettings, result: ablation.AblationResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    # forked from the tests' server instead of spawned: they need not import everything anew
    monkeypatch.setattr(ablation, "get_context", lambda _: context())
    lost = settings.output / "runs" / f"{result.runs[1].run.name}.json"
    lost.unlink()
    written = {path: path.stat().st_mtime_ns for path in lost.parent.iterdir()}
    again = ablate(dataclasses.replace(settings, workers=2))
    assert lost.exists()
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert (again.chosen, again.runs) == (result.chosen, result.runs)


def test_a_folder_of_other_runs_is_refused(settings: AblationSettings, result: ablation.AblationResult) -> None:
    before = (settings.output / "ablation.json").read_text()
    other = dataclasses.replace(settings, overrides=(*settings.overrides, "model.width=4"))
    with pytest.raises(ConfigError, match=r"ablation\.json: its runs have other folds or overrides.*--output"):
        ablate(other)
    assert (settings.output / "ablation.json").read_text() == before
    assert json.loads(before)["overrides"] == list(settings.overrides)


@pytest.mark.parametrize(("n", "n_folds"), [(6, 3), (13, 5), (88, 5)])
def test_folds_test_each_molecule_once_and_never_train_on_it(n: int, n_folds: int) -> None:
    names = [f"molecule_{i}" for i in range(n)]
    divided = folds(names, n_folds)
    assert sorted(name for fold in divided for name in fold["test"]) == sorted(names)
    for fold in divided:
        assert sorted(fold["train"] + fold["val"] + fold["test"]) == sorted(names)
        assert all(fold.values())
    assert divided == folds(names[::-1], n_folds)
    assert divided != folds(names, n_folds, seed=1)


def test_the_choice_weighs_both_errors_and_passes_over_runs_that_diverged() -> None:
    def result(scale: float, energy: float, gradient: float) -> RunResult:
        errors = {"val": {"energy_mae_mHa": energy, "gradient_mae_mHa": gradient}}
        return RunResult(Run("both", 0, 0, 1, 1e-3, scale), errors, {})

    assert choose([result(1.0, 10.0, 9.0), result(2.0, 20.0, 4.0), result(3.0, np.nan, 1.0)]) == (1e-3, 2.0)
    with pytest.raises(ConfigError, match="all runs of 'both' diverged"):
        choose([result(1.0, np.inf, 1.0)])


def test_one_global_scale_is_the_standard_deviation_of_all_components(molecules: Any) -> None:
    datamodule = molecules.datamodule(reference=None, rescaling=None)
    datamodule.setup("fit")
    labelled = [
        s
        for s in (datamodule.raw_datasets["train"][i] for i in range(len(datamodule.raw_datasets["train"])))
        if s.has_energy_label
    ]
    for field in ("coeffs", "gradient_label"):
        values = np.concatenate([sample[field].numpy() for sample in labelled])
        dims = datamodule.basis_info.basis_dim_per_atom
        found = global_std(datamodule.statistics, "has_energy_label", field, dims)
        assert found == pytest.approx(values.std(), rel=1e-10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": ("bothh",)}, "--arms"),
        ({"n_folds": 2}, "--folds 2: expected at least 3"),
        ({"epochs": 0}, "--epochs"),
        ({"input_scales": (1.0, -1.0)}, "--input-scales"),
        ({"seeds": ()}, "--seeds"),
    ],
)
def test_settings_that_compare_nothing_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AblationSettings(Path("output"), **changes)
    with pytest.raises(ConfigError, match="3 molecules for 3 folds"):
        folds(["a", "b", "c"], 3)
