"""A folder with a few embedded molecules as label files, and data modules and trainers that write nothing elsewhere."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from lightning import Trainer

from ofdft_norm import OFDFTDataModule
from ofdft_norm.config import LabelFiles, LoaderConfig, SplitConfig, StatisticsConfig
from ofdft_norm.data.files import EMBEDDED
from ofdft_norm.data.label_file import LabelFileContent, write_label_file
from ofdft_norm.data.packed import PackedDataset, PackedSet
from ofdft_norm.transforms import BasisTransforms

# all have H, C, N and O, so that any of them can train
MOLECULES = ("cyanic_acid", "fulminic_acid", "isocyanic_acid", "isofulminic_acid", "methyl_nitrite", "nitromethane")
ODD_ONE = "nitromethane"  # lacks an iteration, so that the number of training samples is odd
SPLIT = SplitConfig(train=0.66, val=0.17, test=0.17, seed=2)  # 4, 1 and 1 molecules; 23 samples train


def write_embedded_labels(folder: Path, molecules: Sequence[str]) -> None:
    """Writes embedded molecules as label files ``<molecule>.zarr.zip``, in the density basis as it is."""
    packed = PackedSet(EMBEDDED)
    for molecule in molecules:
        index = [np.array([packed.names().index(f"{molecule}.zarr.zip")])]
        read = {
            t: PackedDataset([packed], index, f"e_{t}", f"grad_{t}", transform=BasisTransforms([])).molecules([0])
            for t in ("kin", "kin_plus_xc")
        }
        batch = read["kin"]
        n_scf, n_atoms = len(batch.energy_label), len(batch.atomic_numbers) // len(batch.energy_label)
        rows = np.delete(np.arange(n_scf), [1] if molecule == ODD_ONE else [])
        content = LabelFileContent(
            mol_id=molecule,
            atomic_numbers=batch.atomic_numbers[:n_atoms].numpy(),
            positions=batch.pos[:n_atoms].numpy(),
            coeffs=batch.coeffs.reshape(n_scf, -1).numpy()[rows],
            gradients={f"grad_{t}": own.gradient_label.reshape(n_scf, -1).numpy()[rows] for t, own in read.items()},
            dual_basis_integrals=batch.dual_basis_integrals.reshape(n_scf, -1)[0].numpy(),
            energies={f"e_{t}": own.energy_label.numpy()[rows] for t, own in read.items()},
            ks_energies={},
            has_energy_label=batch.has_energy_label.numpy()[rows],
        )
        write_label_file(folder / f"{molecule}.zarr.zip", content)


class LabelledMolecules:
    """A folder of label files with their basis, and data modules and trainers for it."""

    def __init__(self, folder: Path, molecules: Sequence[str] = MOLECULES) -> None:
        self.folder = folder
        self.labels = folder / "labels"
        write_embedded_labels(self.labels, molecules)
        basis = PackedSet(EMBEDDED).basis_info.to_dict()
        known = [i for i, number in enumerate(basis["atomic_numbers"]) if number != 9]  # no molecule has fluorine
        known_part = {k: [v[i] for i in known] if isinstance(v, list) else v for k, v in basis.items()}
        (folder / "basis_info.json").write_text(json.dumps(known_part))
        self.basis_info = str(folder / "basis_info.json")

    def source(self, **options: Any) -> LabelFiles:
        return LabelFiles(paths=str(self.labels), basis_info=self.basis_info, **options)

    def datamodule(
        self, batch_size: int = 8, loader: Any = None, kind: Any = OFDFTDataModule, **options: Any
    ) -> OFDFTDataModule:
        statistics = StatisticsConfig(dir=str(self.folder / "cache"), progress=False)
        loaders = LoaderConfig(batch_size=batch_size, **(loader or {}))
        defaults = {"source": self.source(), "split": SPLIT, "statistics": statistics, "loader": loaders}
        return cast(OFDFTDataModule, kind(**{**defaults, **options}))

    def trainer(self, **options: Any) -> Trainer:
        off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        defaults = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "default_root_dir": str(self.folder)}
        return Trainer(**{**off, **defaults, **options})
