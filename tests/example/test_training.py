"""A whole run from its configuration: files, falling loss, errors in hartree."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
import zarr
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from ofdft_norm import OFDFTDataModule
from ofdft_norm.example import DensityModule
from ofdft_norm.example.training import compared_by, train
from tests.printed_tables import check_printed

CONFIGS = str(Path(__file__).parents[2] / "configs")
SPLIT = {
    "train": ["water.zarr.zip", "methane.zarr.zip", "methanol.zarr.zip", "ammonia.zarr.zip", "formaldehyde.zarr.zip"],
    "val": ["methylamine.zarr.zip"],
    "test": ["hydrogen_peroxide.zarr.zip"],
}
NAMES = [name.partition(".")[0] for names in SPLIT.values() for name in names]
pytestmark = [
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:the basis has the elements .9."),
    pytest.mark.filterwarnings("ignore:. of . labelled validation samples"),  # four molecules cover no range
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


def composed(folder: Path, *overrides: str):
    (folder / "split.yaml").write_text(yaml.safe_dump(SPLIT))
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        return compose(
            "train",
            [
                "data/split=file",
                f"data.split.file={folder / 'split.yaml'}",
                f"data.statistics.dir={folder / 'statistics'}",
                "data.statistics.progress=false",
                "data.unseen_elements=identity",
                "data.loader.batch_size=8",
                "model.width=16",
                "model.rank=4",
                "trainer.enable_progress_bar=false",
                f"output_dir={folder / 'output'}",
                *overrides,
            ],
        )


@pytest.fixture(scope="module")
def run(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "0")  # seed_everything writes it; undone at the end
        patch.setenv("PL_SEED_WORKERS", "0")
        return composed(folder, "trainer.max_epochs=12"), train(composed(folder, "trainer.max_epochs=12"))


def columns(path: Path) -> dict[str, list[float]]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows if row[name]] for name in rows[0]}


def test_run_folder_is_complete(run, folder):
    names = {str(path.relative_to(folder / "output")) for path in (folder / "output").rglob("*") if path.is_file()}
    expected = {
        "config.yaml",
        "results.txt",
        "results.csv",
        "energies.png",
        "gradient_ranges.png",
        "normalization.png",
        "summary.txt",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "csv/metrics.csv",
    }
    assert expected <= names
    assert len([name for name in names if name.startswith("tensorboard/events")]) == 1
    written = OmegaConf.load(folder / "output" / "config.yaml")
    assert written == OmegaConf.create(OmegaConf.to_container(run[0], resolve=True))


def test_loss_falls(run, folder):
    losses = columns(folder / "output" / "csv" / "metrics.csv")["train/loss"]
    assert len(losses) == 12
    assert losses[-1] < 0.7 * losses[0]


def test_logged_errors_are_those_of_the_label_files_in_hartree(run, folder):
    """From the checkpoint alone and the raw file, read with the zarr library: no data module's denormalisation."""
    model = DensityModule.load_from_checkpoint(folder / "output" / "checkpoints" / "best.ckpt").eval()
    datamodule = OFDFTDataModule()
    path = next(p for p in datamodule.source.label_files() if p.name == SPLIT["test"][0])
    with zarr.storage.ZipStore(path, mode="r") as store:
        root = zarr.open_group(store, mode="r")
        labels = {k: root[f"of_labels/{k}"][...] for k in ("energies/e_kin", "spatial/grad_kin", "spatial/coeffs")}
        integrals = root["of_labels/spatial/dual_basis_integrals"][...]
        labelled = root["ks_labels/energies/has_energy_label"][...].astype(bool)
        pos, numbers = root["geometry/atom_pos"][...], root["geometry/atomic_numbers"][...]

    from ofdft_norm import OFData

    errors, norms = [], []
    for row in np.flatnonzero(labelled):
        w = np.broadcast_to(integrals, labels["spatial/coeffs"].shape)[row].astype(np.float64)
        sample = OFData.construct_new(
            datamodule.basis_info,
            pos,
            numbers,
            labels["spatial/coeffs"][row],
            dual_basis_integrals=w.copy(),
            coordinates="natural_symmetric",  # as the embedded labels are stored
        )
        batch = model.normalizer.normalize(sample)
        batch.coeffs, batch.pos = batch.coeffs.float(), batch.pos.float()
        energy, gradient = model.predict(batch)
        errors.append(abs(energy.item() - labels["energies/e_kin"][row]))
        difference = gradient.numpy() - labels["spatial/grad_kin"][row]
        norms.append(np.linalg.norm(difference - w * (w @ difference) / (w @ w)))
    metrics = run[1]
    assert metrics["test/energy_mae_mHa"] == pytest.approx(1000 * np.mean(errors), rel=1e-3)
    assert metrics["test/gradient_norm_mHa"] == pytest.approx(1000 * np.mean(norms), rel=1e-3)
    assert metrics["results/test/energy_mae_mHa"] == pytest.approx(metrics["test/energy_mae_mHa"], rel=1e-5)


@pytest.mark.parametrize(("unit", "name"), [("hartree", "mHa"), ("eV", "meV"), ("kcal/mol", "kcal_per_mol")])
def test_runs_are_compared_by_the_energy_error_in_their_own_unit(unit, name):
    metrics = {f"results/{split}/energy_mae_{name}": value for split, value in (("test", 1.0), ("val", 2.0))}
    assert compared_by(metrics, unit) == 2.0
    assert compared_by({f"results/test/energy_mae_{name}": 1.0, "train/loss": 3.0}, unit) == 1.0
    assert compared_by({"train/loss": 3.0}, unit) is None


def test_tables_of_a_run_fit_on_a_screen_and_are_explained(run, folder):
    for name in ("results.txt", "summary.txt"):
        check_printed((folder / "output" / name).read_text(), data="has_energy_label|" + "|".join(NAMES))


def test_results_hold_all_baselines_for_both_splits(run, folder):
    with (folder / "output" / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    predictors = ["constant per element", "reference only", "composition and E_xc", "model"]
    assert [(r["split"], r["predictor"]) for r in rows] == [(s, p) for s in ("val", "test") for p in predictors]


def test_normalisation_is_logged_to_every_logger(run, folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    scalars = columns(folder / "output" / "csv" / "metrics.csv")
    assert scalars["normalization/n_molecules"] == [5.0]
    assert scalars["normalization/reference_residual_std_mHa"][0] > 0
    events = EventAccumulator(str(folder / "output" / "tensorboard"))
    events.Reload()
    assert events.Tags()["images"] == ["normalization/gradient_ranges", "results/normalization", "results/energies"]
    assert events.Scalars("hp_metric")[-1].value == pytest.approx(run[1]["results/val/energy_mae_mHa"])
    rates = [event.value for event in events.Scalars("train/learning_rate")]
    assert 0 < max(rates) <= 3e-3
    assert events.Scalars("normalization/n_molecules")[0].value == 5.0


@pytest.mark.filterwarnings("ignore:Total length of `list`")
@pytest.mark.parametrize(("rescaling", "held_out"), [("none", "val"), ("equivariant", "test")])
def test_other_rescalings_and_splits_run(run, folder, tmp_path, rescaling, held_out, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.setenv("PL_SEED_WORKERS", "0")
    split = tmp_path / "split.yaml"
    split.write_text(yaml.safe_dump({"train": SPLIT["train"], held_out: SPLIT[held_out]}))
    overrides = [f"data/rescaling={rescaling}", f"data.split.file={split}", f"output_dir={tmp_path / 'output'}"]
    quick = ("trainer=debug", "trainer.enable_progress_bar=false", "logger=csv", "callbacks=none")
    metrics = train(composed(folder, *overrides, *quick))
    assert torch.isfinite(torch.tensor(list(metrics.values()))).all()
    assert {name.split("/")[1] for name in metrics if name.startswith("results/")} == {held_out}
