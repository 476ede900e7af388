"""A few embedded molecules in a folder, a tiny model on them, and trainers that write nothing."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningModule
from torch import Tensor, nn

from ofdft_norm import NormalizerMixin, OFDFTDataModule
from ofdft_norm.data.files import write_zip
from tests.labelled_molecules import LabelledMolecules


class TinyModel(NormalizerMixin, LightningModule):
    """Energy from the rescaled coefficients of each element's first functions; logs losses and denormalised errors."""

    def __init__(self, n_basis: int = 361, learning_rate: float = 1e-2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.learning_rate = learning_rate
        self.weights = nn.Parameter(torch.zeros(n_basis))
        self.losses: list[float] = []
        self.dtypes: set[torch.dtype] = set()

    def forward(self, batch: Any) -> Tensor:
        terms = self.weights[batch.basis_function_ind] * torch.tanh(batch.coeffs)
        n = len(batch.energy_reference)
        return torch.zeros(n, dtype=terms.dtype, device=terms.device).index_add(0, batch.coeffs_batch, terms)

    def loss(self, batch: Any) -> Tensor:
        errors = (self(batch) - batch.energy_label).square()
        return torch.where(batch.has_energy_label, errors, 0.0).mean()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.losses.append(float(loss.detach()))
        self.dtypes.add(batch.coeffs.dtype)
        return loss

    def evaluate(self, batch: Any, name: str) -> None:
        assert batch.energy_reference.dtype == torch.float64
        found, label = (self.normalizer.denormalize_energy(e, batch) for e in (self(batch), batch.energy_label))
        error = torch.where(batch.has_energy_label, found - label, 0.0).abs().mean()
        self.log(name, error, on_epoch=True, batch_size=len(batch.energy_label), sync_dist=True)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.evaluate(batch, "val_mae")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.evaluate(batch, "test_mae")

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        return {"energy": self.normalizer.denormalize_energy(self(batch), batch)}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)


class Setting(LabelledMolecules):
    """Six molecules as label files; four train."""

    def change_label(self, path: Path) -> None:
        """Shifts the kinetic energies of a label file."""
        with zipfile.ZipFile(path) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        chunk = "of_labels/energies/e_kin/0"
        files[chunk] = (np.frombuffer(files[chunk]) + 0.01).tobytes()
        write_zip(path, files)

    def fit(self, path: Path, datamodule: OFDFTDataModule | None = None, **options: Any) -> tuple[TinyModel, Any]:
        """Trains and writes a checkpoint; returns model and data module."""
        datamodule, model = datamodule or self.datamodule(), TinyModel()
        trainer = self.trainer(**options)
        trainer.fit(model, datamodule=datamodule)
        trainer.save_checkpoint(path)
        return model, datamodule


@pytest.fixture
def setting(tmp_path) -> Setting:
    return Setting(tmp_path)
