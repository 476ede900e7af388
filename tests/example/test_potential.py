"""SchNet on energies and forces of ASE: exact forces, errors, and the data that each model refuses."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from torch_geometric.data import Batch

from ofdft_norm import Normalizer
from ofdft_norm.errors import ConfigError
from ofdft_norm.example import EMTClusters, PotentialModule
from ofdft_norm.example.metrics import EnergyForceErrors
from ofdft_norm.example.potential import labelled_clusters, pairs_within
from ofdft_norm.example.predict import predict
from ofdft_norm.example.train import train
from tests.hydra.composing import composed

QUICK = ("logger=none", "callbacks=none", "trainer=debug", "trainer.enable_progress_bar=false")


@pytest.fixture(scope="module")
def clusters() -> list[Any]:
    """Three clusters as samples."""
    module = EMTClusters(1, 1, 1)
    module.setup()
    return [module.parts[part][0] for part in ("train", "val", "test")]


def test_pairs_are_those_within_the_cutoff_of_one_molecule() -> None:
    rng = np.random.default_rng(0)
    pos, batch = torch.tensor(rng.uniform(0, 3, (9, 3))), torch.tensor([0] * 5 + [1] * 4)
    edges, distances = pairs_within(2.0, pos, batch)
    pairs = ((i, j) for i, j in permutations(range(9), 2) if batch[i] == batch[j])
    expected = {(i, j): d for i, j in pairs if (d := float((pos[i] - pos[j]).norm())) <= 2.0}
    assert {tuple(e): pytest.approx(float(d)) for e, d in zip(edges.T.tolist(), distances, strict=True)} == expected


def test_forces_are_the_negative_derivative_of_the_energy(clusters: list[Any]) -> None:
    torch.manual_seed(0)
    model = PotentialModule(8, 8, 1, 6).double().eval()
    model.normalizer = Normalizer(energy_scale=0.3, energy_field="energy", forces_field="forces", unit="eV")
    batch = Batch.from_data_list([model.normalizer.normalize(sample) for sample in clusters])
    energy, forces = model.predict(batch)
    step, moved = 1e-5, batch.clone()
    moved.pos[3, 1] += step
    difference = (model.predict(moved)[0] - energy).sum() / step
    assert float(forces[3, 1]) == pytest.approx(-float(difference), rel=1e-3)
    with torch.inference_mode():
        torch.testing.assert_close(model.predict(batch)[1], forces)


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
        "forces_mae_meV_per_angstrom": pytest.approx(20),
    }


def test_a_checkpoint_predicts_files_of_ase(tmp_path: Path) -> None:
    sizes = ("model.hidden_channels=16", "model.num_interactions=1", "data.source.datamodule.n_train=24")
    data = ("data.source.datamodule.n_test=5", "data.statistics.progress=false", "logger=csv")
    epochs = ("trainer.max_epochs=2", "trainer.enable_progress_bar=false")
    folder = f"output_dir={tmp_path}"
    metrics = train(composed("train", "experiment=potential", folder, *sizes, *data, *epochs))
    assert metrics["results/test/energy_mae_meV"] == pytest.approx(metrics["test/energy_mae_meV"], rel=1e-4)
    assert "forces MAE" in (tmp_path / "results.txt").read_text()

    clusters = labelled_clusters(24 + 30 + 5)[-5:]
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
