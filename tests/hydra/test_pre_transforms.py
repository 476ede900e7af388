"""Every option of data/pre_transforms trains on labels in the density basis, and predicts gradients in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

pytest.importorskip("pyscf")

from ofdft_norm import BasisInfo, BasisTransforms, OFDataset, project_gradient
from ofdft_norm.config.readable_errors import config_dir
from ofdft_norm.data.embedded_data import EMBEDDED_DATA
from ofdft_norm.data.label_writer import write_label_file
from ofdft_norm.data.of_data import OFData
from ofdft_norm.data.pre_transforms import composed
from ofdft_norm.example.prediction import predict

COORDINATES = {
    "project": "raw",
    "natrep": "natural_symmetric",
    "local_frames": "local_frames",
    "local_frames_natrep": "local_frames+natural_symmetric",
}


def composition(name: str, *overrides: str) -> Any:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose(name, list(overrides))


@pytest.fixture(scope="module")
def raw_labels(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Overrides that read three molecules' embedded labels, brought back to the density basis and written as such."""
    folder = tmp_path_factory.mktemp("raw_labels")
    names = ("water", "ammonia", "methane")
    paths = [EMBEDDED_DATA / "labels" / f"{name}.zarr.zip" for name in names]
    stored = OFDataset(paths, BasisInfo.from_json(EMBEDDED_DATA / "basis_info.json"), transform=BasisTransforms([]))
    for molecule, name in enumerate(names):
        batch = stored.molecule_batch(molecule)
        n, labelled = len(batch.energy_label), batch.has_energy_label.numpy()
        energies = {"e_kin": batch.energy_label.numpy()}
        write_label_file(
            folder / f"{name}.zarr.zip",
            mol_id=name,
            atomic_numbers=batch[0].atomic_numbers.numpy(),
            positions=batch[0].pos.numpy(),
            coeffs=batch.coeffs.reshape(n, -1).numpy(),
            gradients={"grad_kin": batch.gradient_label.reshape(n, -1).numpy()},
            dual_basis_integrals=batch[0].dual_basis_integrals.numpy(),
            energies=energies,
            ks_energies=energies,
            has_energy_label=labelled,
        )
    return (
        "data/source=label_files",
        f"data.source.paths={folder}",
        f"data.source.basis_info={EMBEDDED_DATA / 'basis_info.json'}",
    )


def raw_gradient(model: Any, sample: OFData, pre_transforms: list[Any]) -> torch.Tensor:
    """Differentiates the predicted energy with respect to coefficients of the density basis, through every step."""
    raw = sample.clone()
    raw.coeffs.requires_grad_()
    batch = model.normalizer.normalize(composed(pre_transforms)(raw.clone()))
    energy = model.normalizer.denormalize_energy(model.double().network(batch, batch.coeffs), batch)
    (gradient,) = torch.autograd.grad(energy.sum(), raw.coeffs)
    return gradient


@pytest.mark.filterwarnings("ignore")  # Lightning advises on workers and logging intervals
@pytest.mark.parametrize("option", COORDINATES)
def test_option_trains_on_raw_labels_and_predicts_gradients_in_their_basis(
    option: str, raw_labels: tuple[str, ...], tmp_path: Path
) -> None:
    config = composition(
        "train",
        *raw_labels,
        f"data/pre_transforms={option}",
        *("data.split.train=1", "data.split.val=0", "data.split.test=0"),
        *(f"data.statistics.dir={tmp_path}", "data.statistics.progress=false"),
        *("trainer=debug", "trainer.detect_anomaly=false", "trainer.enable_progress_bar=false"),
        *("model.width=8", "model.rank=2", "model.n_layers=0"),
    )
    datamodule, model = instantiate(config.data), instantiate(config.model)
    trainer = instantiate(config.trainer, logger=False, enable_checkpointing=False, default_root_dir=str(tmp_path))
    trainer.fit(model, datamodule)
    assert torch.isfinite(trainer.callback_metrics["train/loss"])
    assert datamodule.normalizer.coordinates == COORDINATES[option]
    assert next(iter(datamodule.train_dataloader())).coordinates[0] == COORDINATES[option]

    trainer.save_checkpoint(tmp_path / "run.ckpt")
    options = (f"ckpt_path={tmp_path / 'run.ckpt'}", f"output={tmp_path / 'out.npz'}", "head=0", "accelerator=cpu")
    predictions = predict(composition("predict", *raw_labels, "coordinates=raw", *options))
    samples = instantiate(config.data.source).everything(None)
    assert len(predictions) == len(samples)
    assert {prediction.coordinates for prediction in predictions} == {"raw"}
    for i in (1, len(samples) - 1):
        expected = raw_gradient(model, samples[i], datamodule.pre_transforms)
        # single precision; in other coordinates than these a gradient would differ by its own size
        scale = float(project_gradient(expected, samples[i]).abs().max())
        np.testing.assert_allclose(predictions[i].gradient, expected.numpy(), atol=1e-3 * scale)
