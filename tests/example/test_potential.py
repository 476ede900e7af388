"""SchNet on energies and forces of ASE: exact forces, errors, and the data that each model refuses."""

import csv
from itertools import permutations
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.emt import EMT
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.filters import FrechetCellFilter
from ase.md.verlet import VelocityVerlet
from ase.optimize import FIRE
from ase.units import fs
from torch_geometric.data import Batch

from ofdft_norm import BasisInfo, LinearReferences, Normalizer
from ofdft_norm.data.ase import AtomsCheck
from ofdft_norm.data.sample import join_samples
from ofdft_norm.errors import ConfigError, NormalizationError
from ofdft_norm.example import PotentialCalculator, PotentialModule, labelled_clusters, potential_calculator
from ofdft_norm.example.metrics import EnergyForceErrors
from ofdft_norm.example.potential import find_pairs
from ofdft_norm.example.predict import predict
from ofdft_norm.example.train import train
from ofdft_norm.units import find_factor
from tests.hydra.composing import composed

QUICK = ("logger=none", "callbacks=none", "trainer=debug", "trainer.enable_progress_bar=false")


@pytest.fixture(scope="module")
def clusters() -> list[Any]:
    """Three clusters as samples."""
    return [AtomsCheck("energy", "forces")(atoms, "a frame") for atoms in labelled_clusters(3)]


def test_pairs_are_those_within_the_cutoff_of_one_molecule() -> None:
    rng = np.random.default_rng(0)
    pos, batch = torch.tensor(rng.uniform(0, 3, (9, 3))), torch.tensor([0] * 5 + [1] * 4)
    edges, images = find_pairs(2.0, Batch(pos=pos, batch=batch, ptr=torch.tensor([0, 5, 9])))
    pairs = ((i, j) for i, j in permutations(range(9), 2) if batch[i] == batch[j])
    expected = {(i, j) for i, j in pairs if float((pos[i] - pos[j]).norm()) <= 2.0}
    assert set(map(tuple, edges.T.tolist())) == expected
    assert not images.any()


@pytest.fixture(scope="module")
def calculator() -> Any:
    """A calculator of an untrained model in float64, with its own unit."""
    torch.manual_seed(0)
    model = PotentialModule(8, 8, 2, cutoff=4.5).double()
    model.normalizer = Normalizer(energy_scale=7.0, energy_field="energy", forces_field="forces", unit="kcal/mol")
    return PotentialCalculator(model)


def skewed_cell(pbc: Any = True) -> Any:
    """A shaken crystal in a skewed cell that is smaller than the cutoff; an atom is outside of the cell."""
    rng = np.random.default_rng(1)
    atoms = bulk("Cu", cubic=True)
    atoms.numbers[0] = 47
    atoms.set_cell(atoms.cell.array + 0.3 * rng.normal(size=(3, 3)), scale_atoms=True)
    atoms.positions += 0.1 * rng.normal(size=(4, 3))
    atoms.positions[2] += 2 * atoms.cell[1]
    atoms.pbc = pbc
    return atoms


@pytest.mark.parametrize("pbc", [True, (True, False, True), False])
def test_forces_and_stress_are_derivatives_of_the_energy(calculator: Any, pbc: Any) -> None:
    atoms = skewed_cell(pbc)
    atoms.calc = calculator
    np.testing.assert_allclose(atoms.get_forces(), calculate_numerical_forces(atoms, eps=1e-4), atol=1e-7)
    if pbc is not True:
        with pytest.raises(PropertyNotImplementedError):
            atoms.get_stress()
        return
    np.testing.assert_allclose(atoms.get_stress(), calculate_numerical_stress(atoms, eps=1e-5), atol=1e-8)
    twice = atoms * (1, 2, 1)
    twice.calc = calculator
    assert twice.get_potential_energy() == pytest.approx(2 * atoms.get_potential_energy(), rel=1e-12)
    np.testing.assert_allclose(twice.get_stress(), atoms.get_stress(), atol=1e-12)


def test_a_batch_of_cells_and_molecules_predicts_as_its_members(calculator: Any) -> None:
    members = [skewed_cell(), molecule("H2O"), skewed_cell((True, False, True))]
    samples = [AtomsCheck(labelled=False, keys=(None, None, None))(atoms, "a frame") for atoms in members]
    model = calculator.model
    energy, forces, stress = model.predict(model.normalizer.normalize(join_samples(samples)))
    for i, atoms in enumerate(members):
        atoms.calc = calculator
        in_ev = find_factor("kcal/mol", "eV")
        assert in_ev * float(energy[i]) == pytest.approx(atoms.get_potential_energy(), rel=1e-12)
        np.testing.assert_allclose(in_ev * stress[i], atoms.get_stress() if i == 0 else np.nan, rtol=1e-9)
    assert forces.shape == (sum(map(len, members)), 3)


def test_a_calculator_refuses_unknown_elements_and_models_of_densities(calculator: Any, tmp_path: Path) -> None:
    model = PotentialModule(8, 8, 1)
    model.normalizer = Normalizer(LinearReferences(torch.tensor([0.0, -13.6])), energy_field="energy", unit="eV")
    atoms = molecule("H2O", calculator=PotentialCalculator(model))
    with pytest.raises(NormalizationError, match=r"H2O.*no reference energy for the elements \[8\]"):
        atoms.get_potential_energy()
    model.normalizer = Normalizer(basis_info=BasisInfo([1], ["1x0e"]))
    with pytest.raises(ConfigError, match="needs density coefficients"):
        PotentialCalculator(model)


def test_errors_are_means_over_structures_and_components(clusters: list[Any]) -> None:
    normalizer = Normalizer(energy_field="energy", forces_field="forces", unit="eV")
    samples = [normalizer.normalize(sample) for sample in clusters]
    metric = EnergyForceErrors()
    for part in (samples[:1], samples[1:]):
        batch = Batch.from_data_list(part)
        metric.update(normalizer, batch, batch.energy + 0.3, batch.forces - 0.02)
    n_atoms = [len(sample.pos) for sample in samples]
    assert {name: float(value) for name, value in metric.compute().items()} == {
        "energy_mae_meV": pytest.approx(300),
        "energy_mae_per_atom_meV": pytest.approx(300 * np.mean([1 / n for n in n_atoms])),
        "energy_rmse_per_atom_meV": pytest.approx(300 * np.sqrt(np.mean([1 / n**2 for n in n_atoms]))),
        "forces_mae_meV_per_angstrom": pytest.approx(20),
        "forces_rmse_meV_per_angstrom": pytest.approx(20),
        "stress_mae_meV_per_angstrom3": pytest.approx(np.nan, nan_ok=True),
    }


def test_a_checkpoint_predicts_files_of_ase(tmp_path: Path) -> None:
    sizes = ("model.hidden_channels=16", "model.num_interactions=1", "data.source.train.n=24")
    made = "{_target_: ofdft_norm.example.labelled_clusters, n: 5, seed: %d}"
    parts = ("+data.source.val=" + made % 1, "+data.source.test=" + made % 2)
    data = (*parts, "data.statistics.progress=false", "logger=csv")
    epochs = ("trainer.max_epochs=2", "trainer.enable_progress_bar=false")
    folder = f"output_dir={tmp_path}"
    average = "callbacks=weight_averaging"  # checkpoints hold the averaged weights, with the normaliser
    metrics = train(composed("train", "experiment=potential", folder, average, *sizes, *data, *epochs))
    assert metrics["results/test/energy_mae_meV"] == pytest.approx(metrics["test/energy_mae_meV"], rel=1e-4)
    assert "forces" in (tmp_path / "results.txt").read_text()

    clusters = labelled_clusters(5, seed=2)
    ase.io.write(tmp_path / "test.xyz", clusters)
    output, checkpoint = tmp_path / "predictions.xyz", tmp_path / "checkpoints" / "best.ckpt"
    source = ("data/source=ase", f"data.source.paths={tmp_path / 'test.xyz'}")
    predict(composed("predict", f"ckpt_path={checkpoint}", *source, f"output={output}", "accelerator=cpu"))
    errors = []
    for frame, cluster in zip(ase.io.read(output, index=":"), clusters, strict=True):
        np.testing.assert_allclose(frame.positions, cluster.positions, atol=1e-6)
        assert frame.info["energy_label_eV"] == pytest.approx(cluster.get_potential_energy(), abs=1e-5)
        errors.append(abs(frame.get_potential_energy() - cluster.get_potential_energy()))
        assert frame.get_forces().shape == cluster.get_forces().shape
    assert 1e3 * np.mean(errors) == pytest.approx(metrics["test/energy_mae_meV"], rel=1e-3)


def strained_cells(n: int) -> list[Any]:
    """Strained and shaken cells of copper with results of EMT."""
    rng, frames = np.random.default_rng(0), []
    for _ in range(n):
        atoms = bulk("Cu", a=3.6, cubic=True)
        atoms.set_cell(atoms.cell.array * rng.uniform(0.95, 1.05) + 0.05 * rng.normal(size=(3, 3)), scale_atoms=True)
        atoms.rattle(0.1, rng=rng)
        atoms.calc, atoms.info["config_type"] = EMT(), "bulk"
        atoms.get_stress()
        frames.append(atoms)
    return frames


def test_a_checkpoint_relaxes_cells_and_runs_molecular_dynamics(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "data.xyz", strained_cells(20) + labelled_clusters(12))
    data = ("data/source=ase", f"data.source.paths={tmp_path / 'data.xyz'}", "data.source.stress=stress")
    options = (
        "model=potential",
        "data/reference=linear",
        "data/rescaling=none",
        "data.unit=eV",
        "data.energy_scale=std",
    )
    sizes = ("model.hidden_channels=16", "model.num_filters=16", "model.num_interactions=1", "model.cutoff=4")
    run = ("trainer.max_epochs=4", "trainer.enable_progress_bar=false", "logger=csv", "data.loader.batch_size=2")
    folder = (f"output_dir={tmp_path}", "data.statistics.progress=false", f"data.statistics.dir={tmp_path}")
    metrics = train(composed("train", *data, *options, *sizes, *run, *folder))
    with (tmp_path / "results.csv").open() as file:
        of_test = [row for row in csv.DictReader(file) if row["split"] == "test"]
    found = {row["predictor"]: row for row in of_test if not row["group"]}
    for error in ("forces_mae_meV_per_angstrom", "stress_mae_meV_per_angstrom3"):
        assert float(found["model"][error]) == pytest.approx(metrics[f"test/{error}"], rel=1e-4)
        assert float(found["model"][error]) < float(found["reference only"][error])
    by_type = {row["group"]: row for row in of_test if "config_type" in row["group"]}
    assert set(by_type) == {"config_type=", "config_type=bulk"}
    for error in ("energy_mae_meV", "energy_mae_per_atom_meV"):
        sums = sum(int(row["n_samples"]) * float(row[error]) for row in by_type.values())
        assert sums / int(found["model"]["n_samples"]) == pytest.approx(float(found["model"][error]))

    atoms = strained_cells(1)[0]
    atoms.calc = potential_calculator(tmp_path / "checkpoints" / "best.ckpt")
    before = atoms.get_potential_energy()
    assert FIRE(FrechetCellFilter(atoms), logfile=None).run(fmax=0.05, steps=200)
    assert atoms.get_potential_energy() < before
    assert np.abs(atoms.get_forces()).max() < 0.05
    cluster = labelled_clusters(1)[0]
    cluster.calc = atoms.calc
    cluster.set_velocities(0.01 * np.random.default_rng(0).normal(size=(len(cluster), 3)))
    total = []
    dynamics = VelocityVerlet(cluster, timestep=fs)
    dynamics.attach(lambda: total.append(cluster.get_total_energy()))
    dynamics.run(200)
    assert len(total) == 201
    assert np.ptp(total) < 0.01  # eV


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=potential"], r"the data have no forces: .*model=density"),
        (["data/source=ase", "data/reference=linear", "data/rescaling=none", "data.unit=eV"], "have none: .*model"),
    ],
)
def test_each_model_refuses_data_without_its_labels(overrides: list[str], message: str, tmp_path: Path) -> None:
    if len(overrides) > 1:
        ase.io.write(tmp_path / "data.xyz", labelled_clusters(12))
        overrides = [*overrides, f"data.source.paths={tmp_path / 'data.xyz'}"]
    with pytest.raises(ConfigError, match=message):
        train(composed("train", *overrides, f"output_dir={tmp_path}", *QUICK))
