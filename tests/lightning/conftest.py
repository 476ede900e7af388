"""A few embedded molecules in a folder, a tiny model on them, and trainers that write nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn

from ofdft_norm import NormalizerMixin, OFDFTDataModule
from ofdft_norm.config import LabelFiles, LoaderConfig, SplitConfig, StatisticsConfig
from ofdft_norm.data.embedded_data import EMBEDDED_DATA

# all have H, C, N and O, so that any of them can train
MOLECULES = ("cyanic_acid", "fulminic_acid", "isocyanic_acid", "isofulminic_acid", "methyl_nitrite", "nitromethane")
SPLIT = SplitConfig(train=0.66, val=0.17, test=0.17, seed=2)  # 4, 1 and 1 molecules; 37 samples train


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
        error = self.normalizer.denormalize_energy(self(batch), batch) - self.normalizer.denormalize_energy(
            batch.energy_label, batch
        )
        error = torch.where(batch.has_energy_label, error, 0.0).abs().mean()
        self.log(name, error, on_epoch=True, batch_size=len(batch.energy_label), sync_dist=True)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.evaluate(batch, "val_mae")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.evaluate(batch, "test_mae")

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        return {"energy": self.normalizer.denormalize_energy(self(batch), batch)}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)


class Setting:
    """A folder of label files, and data modules, models and trainers for it."""

    tiny_model = TinyModel

    def __init__(self, folder: Path, molecules: Sequence[str] = MOLECULES) -> None:
        self.folder = folder
        self.labels = folder / "labels"
        self.labels.mkdir(parents=True)
        for name in molecules:
            shutil.copy(EMBEDDED_DATA / "labels" / f"{name}.zarr.zip", self.labels)
        basis = json.loads((EMBEDDED_DATA / "basis_info.json").read_text())
        known = [i for i, number in enumerate(basis["atomic_numbers"]) if number != 9]  # no molecule has fluorine
        known_part = {k: [v[i] for i in known] if isinstance(v, list) else v for k, v in basis.items()}
        (folder / "basis_info.json").write_text(json.dumps(known_part))
        self.basis_info = str(folder / "basis_info.json")

    def source(self, **options: Any) -> LabelFiles:
        return LabelFiles(paths=str(self.labels), basis_info=self.basis_info, **options)

    def datamodule(self, batch_size: int = 8, loader: dict[str, Any] | None = None, **options: Any) -> OFDFTDataModule:
        defaults: dict[str, Any] = {
            "source": self.source(),
            "split": SPLIT,
            "statistics": StatisticsConfig(dir=str(self.folder / "cache"), progress=False),
            "loader": LoaderConfig(batch_size=batch_size, **(loader or {})),
        }
        return OFDFTDataModule(**{**defaults, **options})

    def trainer(self, **options: Any) -> Trainer:
        defaults: dict[str, Any] = {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": str(self.folder),
        }
        return Trainer(**{**defaults, **options})

    def fit(self, path: Path, datamodule: OFDFTDataModule | None = None, **options: Any) -> tuple[TinyModel, Any]:
        """Trains and writes a checkpoint; returns model and data module."""
        datamodule, model = datamodule or self.datamodule(), TinyModel()
        trainer = self.trainer(**options)
        trainer.fit(model, datamodule=datamodule)
        trainer.save_checkpoint(path)
        return model, datamodule


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    """Six molecules; three train."""
    return Setting(tmp_path)


@pytest.fixture
def tiny_model() -> type[TinyModel]:
    """The class of the model."""
    return TinyModel


@pytest.fixture(scope="session")
def make_setting() -> Callable[..., Setting]:
    """`Setting(folder, molecules)`."""
    return Setting


IGNORED = (
    # Lightning 2.6 with torch 2.13
    "ignore:.*LeafSpec.*:FutureWarning",
    # advice that does not concern tests of a few samples
    "ignore:.*does not have many workers.*",
    "ignore:.*smaller than the logging interval.*",
    "ignore:GPU available but not used.*",
    "ignore:.*tensorboardX.*",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for text in IGNORED:
                item.add_marker(pytest.mark.filterwarnings(text))
