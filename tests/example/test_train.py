"""A whole run from its configuration, and its report: files, falling loss, errors in hartree."""

import csv
import html
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ofdft_norm import OFData, project_gradient
from ofdft_norm.data.files import EMBEDDED
from ofdft_norm.data.packed import PackedDataset, PackedSet
from ofdft_norm.errors import ConfigError
from ofdft_norm.example import DensityModule
from ofdft_norm.example.report import write_report
from ofdft_norm.example.train import find_compared_metric, train
from tests.hydra.composing import composed as composed_by_name

SPLIT = {
    "train": ["water.zarr.zip", "methane.zarr.zip", "methanol.zarr.zip", "ammonia.zarr.zip", "formaldehyde.zarr.zip"],
    "val": ["methylamine.zarr.zip"],
    "test": ["hydrogen_peroxide.zarr.zip"],
}
pytestmark = pytest.mark.filterwarnings(
    "ignore:The number of training batches",
    "ignore:Total length of `list`",
    "ignore:the basis has the elements",
    "ignore:. of . labelled validation samples",  # five molecules cover no range
)


def composed(folder: Path, *overrides: str, split: Any = SPLIT) -> Any:
    (folder / "split.yaml").write_text(yaml.safe_dump(split))
    data = (f"data.split.file={folder / 'split.yaml'}", f"data.statistics.dir={folder / 'statistics'}")
    settings = (
        *("data/split=file", *data, "data.statistics.progress=false", "data.unseen_elements=identity"),
        *("data.loader.batch_size=8", "model.width=16", "trainer.enable_progress_bar=false"),
    )
    return composed_by_name("train", *settings, f"output_dir={folder / 'output'}", *overrides)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def run(folder) -> tuple[Any, dict[str, float]]:
    """Configuration and metrics of a run of six epochs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "0")  # seed_everything writes it; undone at the end
        patch.setenv("PL_SEED_WORKERS", "0")
        config = composed(folder, "trainer.max_epochs=6")
        return config, train(config)


def test_run_folder_is_complete_and_the_loss_falls(run, folder):
    names = {str(path.relative_to(folder / "output")) for path in (folder / "output").rglob("*")}
    texts = {"config.yaml", "run.yaml", "results.txt", "results.csv", "summary.txt", "csv/metrics.csv"}
    pictures = {"parity.png", "learning_curves.png", "gradient_ranges.png", "normalization.png"}
    assert texts | pictures | {"checkpoints/best.ckpt", "checkpoints/last.ckpt"} <= names
    written = OmegaConf.load(folder / "output" / "config.yaml")
    assert written == OmegaConf.create(OmegaConf.to_container(run[0], resolve=True))
    lines = (folder / "output" / "results.txt").read_text().splitlines()
    assert max(map(len, lines)) <= 80
    with (folder / "output" / "results.csv").open(newline="") as file:
        rows = [(row["split"], row["predictor"], row["group"]) for row in csv.DictReader(file)]
    predictors = ["composition", "composition + T_TF + T_vW", "reference only", "model"]
    for split, elements in {"val": "HCN", "test": "HO"}.items():
        of_model = [(split, "model", f"element={element}") for element in elements]
        assert [row for row in rows if row[0] == split] == [*((split, name, "") for name in predictors), *of_model]

    with (folder / "output" / "csv" / "metrics.csv").open(newline="") as file:
        metrics = list(csv.DictReader(file))
    losses = [float(row["train/loss"]) for row in metrics if row["train/loss"]]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    assert [row["normalization/n_molecules"] for row in metrics if row["normalization/n_molecules"]] == ["5.0"]


def test_tensorboard_has_pictures_and_the_error_by_which_runs_are_compared(run, folder):
    events = EventAccumulator(str(folder / "output" / "tensorboard"))
    events.Reload()
    shown = ["normalization/gradient_ranges", "results/normalization", "results/parity", "results/learning_curves"]
    assert events.Tags()["images"] == shown
    assert events.Scalars("hp_metric")[-1].value == pytest.approx(run[1]["results/val/energy_mae_mHa"])
    assert 0 < max(event.value for event in events.Scalars("train/learning_rate")) <= run[0].model.learning_rate
    metrics = {"results/val/energy_mae_meV": 2.0, "results/test/energy_mae_meV": 1.0}
    assert find_compared_metric(metrics, "eV") == 2.0
    assert find_compared_metric({"train/loss": 3.0}, "eV") is None


def test_logged_errors_are_those_of_the_labels_in_hartree(run, folder):
    """From the checkpoint and the stored labels alone, without a data module."""
    model = DensityModule.load_from_checkpoint(folder / "output" / "checkpoints" / "best.ckpt").eval()
    packed = PackedSet(EMBEDDED)
    index = np.array([packed.names().index(SPLIT["test"][0])])
    errors, norms = [], []
    for stored in PackedDataset([packed], [index]):
        if not stored.has_energy_label:
            continue
        arguments = (packed.basis_info, stored.pos, stored.atomic_numbers, stored.coeffs)
        integrals, coordinates = stored.dual_basis_integrals, stored.coordinates
        sample = OFData.construct_new(*arguments, dual_basis_integrals=integrals, coordinates=coordinates)
        batch = model.normalizer.normalize(sample)
        batch.coeffs, batch.pos = batch.coeffs.float(), batch.pos.float()
        energy, gradient = model.predict(batch)
        errors.append(abs(energy.item() - stored.energy_label.item()))
        norms.append(float(project_gradient(gradient - stored.gradient_label, stored).norm()))
    assert run[1]["test/energy_mae_mHa"] == pytest.approx(1000 * np.mean(errors), rel=1e-3)
    assert run[1]["test/gradient_norm_mHa"] == pytest.approx(1000 * np.mean(norms), rel=1e-3)
    assert run[1]["results/test/energy_mae_mHa"] == pytest.approx(run[1]["test/energy_mae_mHa"], rel=1e-5)


@pytest.mark.parametrize(("rescaling", "held_out"), [("none", "val"), ("equivariant", "test")])
def test_other_rescalings_and_splits_run(rescaling, held_out, tmp_path, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.setenv("PL_SEED_WORKERS", "0")
    split = {part: SPLIT[part] for part in ("train", held_out)}
    quick = ("trainer=debug", "trainer.enable_progress_bar=false", "logger=csv", "callbacks=none")
    metrics = train(composed(tmp_path, f"data/rescaling={rescaling}", *quick, split=split))
    assert torch.isfinite(torch.tensor(list(metrics.values()))).all()
    assert {name.split("/")[1] for name in metrics if name.startswith("results/")} == {held_out}


# --- the report -------------------------------------------------------------------------------------------------------


def test_report_shows_the_files_of_the_run(run, folder, tmp_path):
    page = write_report(folder / "output", tmp_path / "page.html").read_text()
    text = html.unescape(re.sub(r"<[^>]+>", "", page))
    error = run[1]["results/test/energy_mae_ground_state_mHa"]
    assert f"energy at the ground state on the test split: {error:.1f} mHa" in text
    for name in ("results.txt", "summary.txt"):
        assert (folder / "output" / name).read_text() in text
    for key, words in {"source.keep_in_memory": "yes", "reference": "atomic", "rescaling": "dimension-wise"}.items():
        assert f"<tr><td>data.{key}</td><td>{words}</td></tr>" in page
    assert page.count("<img") == 4
    assert re.findall("<h2>(.*?)</h2>", page)[0] == "Results"
    assert not re.findall(r'(?:src|href)="(?!data:)[^"]*"', page)  # nothing else is loaded
    with pytest.raises(ConfigError, match="exists already"):
        write_report(folder / "output", tmp_path / "page.html")
    write_report(folder / "output", tmp_path / "page.html", overwrite=True)
    damaged = shutil.copytree(folder / "output", tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    for name, text in {"results.csv": "predictor\nmodel\n", "run.yaml": "- 1", "config.yaml": "a: ["}.items():
        (damaged / name).write_text(text)
        with pytest.raises(ConfigError, match=r"run: config.yaml, run.yaml or results.csv is damaged"):
            write_report(damaged, tmp_path / "other.html")
