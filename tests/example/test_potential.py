"""SchNet on energies and forces of ASE: exact forces, a whole run, and its checkpoint on other data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from ase.calculators.emt import EMT
from hydra import compose, initialize_config_dir
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch_geometric.data import Batch

from ofdft_norm import Normalizer
from ofdft_norm.config.readable_errors import config_dir
from ofdft_norm.data.ase_files import ASEDataset
from ofdft_norm.errors import ConfigError
from ofdft_norm.example import PotentialModule
from ofdft_norm.example.potential import EnergyForceErrors, PairsWithin
from ofdft_norm.example.prediction import predict
from ofdft_norm.example.structures import labelled_clusters
from ofdft_norm.example.training import train
from tests.printed_tables import check_printed, tables

SMALL = [
    "model.hidden_channels=16",
    "model.num_filters=16",
    "model.num_interactions=1",
    "model.num_gaussians=8",
    "data.source.datamodule.n_train=24",
    "data.source.datamodule.n_val=4",
    "data.source.datamodule.n_test=5",
    "data.source.datamodule.batch_size=8",
    "data.statistics.progress=false",
    "trainer.log_every_n_steps=1",
    "trainer.max_epochs=3",
    "trainer.enable_progress_bar=false",
]


def composed(name: str, *overrides: str) -> Any:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose(name, [*overrides])


def clusters(n: int) -> list[Any]:
    dataset = ASEDataset(labelled_clusters(n, 0))
    return [dataset[i] for i in range(n)]


def test_pairs_are_those_within_the_cutoff_of_one_molecule() -> None:
    rng = np.random.default_rng(0)
    pos, batch = torch.tensor(rng.uniform(0, 3, (9, 3))), torch.tensor([0] * 5 + [1] * 4)
    edges, distances = PairsWithin(2.0)(pos, batch)
    expected = {
        (i, j): float((pos[i] - pos[j]).norm())
        for i in range(9)
        for j in range(9)
        if i != j and batch[i] == batch[j] and (pos[i] - pos[j]).norm() <= 2.0
    }
    assert {tuple(e): pytest.approx(float(d)) for e, d in zip(edges.T.tolist(), distances, strict=True)} == expected


def test_clusters_are_those_of_their_seed_and_labelled_by_emt() -> None:
    first, again = labelled_clusters(3, 1), labelled_clusters(3, 1)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.positions, b.positions)
        bare = a.copy()
        bare.calc = EMT()
        assert bare.get_potential_energy() == a.get_potential_energy()


def test_forces_are_the_negative_derivative_of_the_energy() -> None:
    torch.manual_seed(0)
    model = PotentialModule(8, 8, 1, 6).double().eval()
    model.normalizer = Normalizer(energy_scale=0.3, energy_field="energy", forces_field="forces", unit="eV")
    samples = [model.normalizer.normalize(sample) for sample in clusters(2)]
    batch = Batch.from_data_list(samples)
    energy, forces = model.predict(batch)
    step, moved = 1e-5, batch.clone()
    moved.pos[3, 1] += step
    difference = (model.predict(moved)[0] - energy).sum() / step
    assert float(forces[3, 1]) == pytest.approx(-float(difference), rel=1e-3)
    with torch.inference_mode():
        torch.testing.assert_close(model.predict(batch)[1], forces)


def test_errors_are_means_over_structures_and_components() -> None:
    normalizer = Normalizer(energy_field="energy", forces_field="forces", unit="eV")
    samples = [normalizer.normalize(sample) for sample in clusters(3)]
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


@pytest.mark.filterwarnings("ignore")  # Lightning advises on workers and logging intervals
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=potential"], r"PotentialModule learns energies and forces, and no forces are read: .*model=density"),
        (
            ["data/source=ase", "data/reference=linear", "data/rescaling=none", "data.unit=eV"],
            r"DensityModule learns from density coefficients, and the samples have none: .*\(config: model\)",
        ),
    ],
)
def test_each_model_says_what_data_it_cannot_learn_from(overrides: list[str], message: str, tmp_path: Path) -> None:
    if "data/source=ase" in overrides:
        ase.io.write(tmp_path / "data.xyz", labelled_clusters(12, seed=0))
        overrides = [*overrides, f"data.source.paths={tmp_path / 'data.xyz'}"]
    cfg = composed("train", *overrides, f"output_dir={tmp_path}", "logger=none", "callbacks=none", "trainer=debug")
    with pytest.raises(ConfigError, match=message):
        train(cfg)


def test_a_run_ends_in_errors_in_ev_and_its_checkpoint_predicts_elsewhere(tmp_path: Path) -> None:
    metrics = train(composed("train", "experiment=potential", f"output_dir={tmp_path}", *SMALL))
    table = (tmp_path / "results.txt").read_text()
    check_printed(table)
    assert table.splitlines()[0].split("  ")[-1].strip() == "F [meV/angstrom]"
    rows = [row[0] for row in tables(table)[0]]
    assert rows == ["mean absolute errors", *["reference only", "model"] * 2]
    check_printed((tmp_path / "summary.txt").read_text(), data=r"constant|[A-Z][a-z]?|structure.*")
    for name in ("energies", "normalization"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["images"] == ["results/normalization", "results/energies"]
    assert events.Scalars("hp_metric")[-1].value == pytest.approx(metrics["results/val/energy_mae_meV"])
    assert max(event.value for event in events.Scalars("train/learning_rate")) > 0
    assert events.Scalars("normalization/n_samples")[0].value > 0
    assert metrics["results/test/energy_mae_meV"] == pytest.approx(metrics["test/energy_mae_meV"], rel=1e-4)

    model = PotentialModule.load_from_checkpoint(tmp_path / "checkpoints" / "best.ckpt").eval()
    assert model.normalizer.unit == "eV"
    clusters = labelled_clusters(33, 0)
    ase.io.write(tmp_path / "test.xyz", clusters[-5:])
    output = tmp_path / "predictions.xyz"
    predict(
        composed(
            "predict",
            f"ckpt_path={tmp_path / 'checkpoints' / 'best.ckpt'}",
            "model._target_=ofdft_norm.example.PotentialModule",
            "data/source=ase",
            f"data.source.paths={tmp_path / 'test.xyz'}",
            f"output={output}",
        )
    )
    errors = []
    for frame, cluster in zip(ase.io.read(output, index=":"), clusters[-5:], strict=True):
        np.testing.assert_allclose(frame.positions, cluster.positions, atol=1e-6)
        assert frame.info["energy_label_eV"] == pytest.approx(cluster.get_potential_energy(), abs=1e-5)
        errors.append(abs(frame.get_potential_energy() - cluster.get_potential_energy()))
        assert frame.get_forces().shape == cluster.get_forces().shape
    assert 1e3 * np.mean(errors) == pytest.approx(metrics["test/energy_mae_meV"], rel=1e-3)
