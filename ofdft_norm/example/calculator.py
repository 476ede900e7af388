"""An ASE calculator of a trained interatomic potential: relaxation, molecular dynamics, phonons, ... with ASE."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from lightning import LightningModule

from ofdft_norm.checkpoint import name_errors, read_checkpoint
from ofdft_norm.data.ase import AtomsCheck
from ofdft_norm.data.files import import_optional
from ofdft_norm.data.sample import join_samples
from ofdft_norm.errors import ConfigError
from ofdft_norm.example.predict import load_model
from ofdft_norm.normalization.normalized_dataset import NormalizeBatch
from ofdft_norm.normalization.normalizer import Normalizer
from ofdft_norm.units import find_factor

_base = import_optional("ase.calculators.calculator", "ase")


class PotentialCalculator(_base.Calculator):  # type: ignore[name-defined]
    """Energy [eV], forces [eV/angstrom] and, of cells that are periodic in three directions, stress [eV/angstrom^3].

    Args:
        model: A LightningModule with a normaliser (`NormalizerMixin`), trained on positions in angstrom. Its
            `predict_step` returns a dict with `energy`, (n_molecules,), and optionally `forces`, (n_atom, 3), and
            `stress`, (n_molecules, 6), in the unit of the normaliser.
        **kwargs: Arguments of ASE's `Calculator`.

    Raises:
        ConfigError: If the model needs density coefficients, which `ase.Atoms` lack.
    """

    implemented_properties = ("energy", "free_energy", "forces", "stress")

    def __init__(self, model: LightningModule, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model: Any = model.eval()
        normalizer = cast(Normalizer, self.model.normalizer)
        if normalizer.basis_info is not None:
            raise ConfigError(f"{type(model).__name__} needs density coefficients: expected a model of energies alone")
        self._to_ev = find_factor(normalizer.unit, "eV")
        self._check = AtomsCheck(normalizer.energy_field, None, labelled=False, keys=(None, None, None))

    def calculate(
        self,
        atoms: Any = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(_base.all_changes),
    ) -> None:
        """Computes all properties; ASE calls this.

        Args:
            atoms: The structure.
            properties: Not used: all properties come from one evaluation.
            system_changes: What has changed since the last call.

        Raises:
            NormalizationError: If an element has no reference energy.
        """
        super().calculate(atoms, properties, system_changes)
        sample = self._check(self.atoms, f"atoms {self.atoms.get_chemical_formula()}")
        batch = join_samples([sample]).to(self.model.device)
        batch = NormalizeBatch(self.model.normalizer, self.model.dtype)(batch)
        predicted = self.model.predict_step(batch, 0)
        found = {name: self._to_ev * values.detach().cpu().numpy() for name, values in predicted.items()}
        energy = float(found["energy"].item())
        self.results = {"energy": energy, "free_energy": energy}
        if "forces" in found:
            self.results["forces"] = found["forces"]
        if "stress" in found and self.atoms.pbc.all():
            self.results["stress"] = found["stress"].reshape(-1)


def potential_calculator(
    checkpoint: str | Path, model: str | None = None, device: str = "cpu", dtype: torch.dtype = torch.float64
) -> PotentialCalculator:
    """Returns the ASE calculator of a checkpoint.

    Args:
        checkpoint: A checkpoint of a model with its normaliser.
        model: Name of the model's class, ``package.module.Class``; None: the checkpoint's, if it is of this package.
        device: Where the model computes: ``cpu``, ``cuda``, ....
        dtype: Dtype of the model: float32 is faster, and its forces and energies agree with each other less exactly.

    Raises:
        ConfigError: If the checkpoint is missing or damaged, or its model is unknown.
    """
    content = read_checkpoint(checkpoint)
    with name_errors(checkpoint):
        return PotentialCalculator(load_model(content, model).to(device, dtype))
