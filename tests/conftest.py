"""Builders of random bases, samples and label files, shared by all tests.

Label files are written with the zarr library alone, so that readers are tested against another implementation.
"""

import itertools
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

# read by torch and PySCF when they are imported; with more threads, parallel test processes would wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
import zarr
from hypothesis import settings
from hypothesis import strategies as st
from torch_geometric.data import Batch

from ofdft_norm import BasisInfo, OFData
from tests.naive_statistics import naive_statistics

# scripts that tests run as processes of their own
collect_ignore_glob = ["**/_*.py"]

settings.register_profile("ofdft_norm", deadline=None, derandomize=True, max_examples=25, database=None)
settings.load_profile("ofdft_norm")

WATER_BASIS = BasisInfo([1, 6, 8], ["2x0e+1x1o", "3x0e+2x1o+1x2e", "2x0e+1x1o+1x2e"])


# Lightning's advice to users, which does not concern tests of a few samples
ADVICE = (
    "ignore:.*LeafSpec.*:FutureWarning",  # Lightning 2.6 with torch 2.13
    "ignore:.*isinstance.treespec",
    "ignore:.*does not have many workers.*",
    "ignore:.*smaller than the logging interval.*",
    "ignore:GPU available but not used.*",
    "ignore:.*tensorboardX.*",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item, advice in itertools.product(items, ADVICE):
        item.add_marker(pytest.mark.filterwarnings(advice), append=False)


def _basis_size(basis_info: BasisInfo, atomic_numbers: Sequence[int]) -> int:
    return int(basis_info.basis_dim_per_atom[basis_info.atom_indices(np.array(atomic_numbers))].sum())


def random_sample(
    basis_info: BasisInfo,
    rng: np.random.Generator,
    atomic_numbers: Sequence[int] | None = None,
    mol_id: str = "molecule",
    scf_iteration: int = 1,
    has_energy_label: bool = True,
    **fields: Any,
) -> OFData:
    """Builds a sample with random values of every field; `fields` replace them."""
    drawn = rng.choice(basis_info.atomic_numbers, rng.integers(1, 5)).tolist()
    numbers = drawn if atomic_numbers is None else list(atomic_numbers)
    n = _basis_size(basis_info, numbers)
    values = {
        "coeffs": rng.normal(size=n) * 3 + 1,
        "ground_state_coeffs": rng.normal(size=n),
        "gradient_label": rng.normal(size=n) * 0.3 - 0.1,
        "energy_label": np.array([rng.normal() * 50 - 100]),
        "dual_basis_integrals": rng.uniform(0.1, 2, size=n),
    }
    pos, fields = rng.normal(size=(len(numbers), 3)), {**values, **fields, "has_energy_label": has_energy_label}
    return OFData.construct_new(basis_info, pos, numbers, **fields, mol_id=mol_id, scf_iteration=scf_iteration)


def collate(samples: Sequence[OFData]) -> Any:
    """Collates samples as PyG's DataLoader does with ``follow_batch=["coeffs"]``."""
    return Batch.from_data_list(list(samples), follow_batch=["coeffs"])


@st.composite
def bases(draw: st.DrawFn) -> BasisInfo:
    """Bases of one to three elements, with l up to 3."""
    elements = draw(st.lists(st.integers(1, 118), min_size=1, max_size=3, unique=True))
    irreps = []
    for _ in elements:
        shells = [f"{draw(st.integers(1, 3))}x0e"]
        shells += [f"{n}x{l}{'eo'[l % 2]}" for l in (1, 2, 3) if (n := draw(st.integers(0, 2)))]
        irreps.append("+".join(shells))
    return BasisInfo(elements, irreps)


@st.composite
def sample_lists(draw: st.DrawFn, max_samples: int = 4) -> tuple[BasisInfo, list[OFData], np.random.Generator]:
    """A random basis, a few samples of random molecules in it, and a random generator for more."""
    basis_info = draw(bases())
    elements = st.sampled_from(basis_info.atomic_numbers.tolist())
    molecules = draw(st.lists(st.lists(elements, min_size=1, max_size=4), min_size=1, max_size=max_samples))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    named = {f"molecule_{i}": numbers for i, numbers in enumerate(molecules)}
    samples = [random_sample(basis_info, rng, n, name, int(rng.integers(0, 4))) for name, n in named.items()]
    return basis_info, samples, rng


def label_arrays(
    basis_info: BasisInfo,
    rng: np.random.Generator,
    atomic_numbers: Sequence[int] = (8, 1, 1),
    n_scf: int = 4,
    mol_id: str = "water",
) -> dict[str, np.ndarray]:
    """Random content of a label file in STRUCTURES25's layout; the initial guess has no label and zeros instead."""
    n_basis = _basis_size(basis_info, atomic_numbers)
    labelled = np.arange(n_scf) > 0
    gradient = {name: rng.normal(size=(n_scf, n_basis)) * labelled[:, None] for name in ("grad_kin", "grad_tot")}
    energies = {name: (rng.normal(size=n_scf) - 70) * labelled for name in ("e_kin", "e_tot")}
    integrals = np.broadcast_to(rng.uniform(0.1, 2, size=n_basis), (n_scf, n_basis)).copy()
    return {
        "geometry/mol_id": np.array(mol_id),
        "geometry/atom_pos": rng.normal(size=(len(atomic_numbers), 3)),
        "geometry/atomic_numbers": np.array(atomic_numbers, dtype=np.uint8),
        "of_labels/basis": np.array("even_tempered_2.5"),
        "of_labels/n_scf_steps": np.array(n_scf),
        "of_labels/spatial/coeffs": rng.normal(size=(n_scf, n_basis)),
        "of_labels/spatial/dual_basis_integrals": integrals,
        **{f"of_labels/spatial/{name}": values for name, values in gradient.items()},
        **{f"of_labels/energies/{name}": values for name, values in energies.items()},
        "ks_labels/basis": np.array("6-31G(2df,p)"),
        "ks_labels/energies/e_kin": rng.normal(size=n_scf),
        "ks_labels/energies/has_energy_label": labelled,
    }


def write_zarr(
    path: Path,
    arrays: dict[str, np.ndarray],
    chunk_rows: int | None = 1,
    compressor: Any = None,
    write_empty_chunks: bool = False,
    plain: Sequence[str] = (),
) -> Path:
    """Writes named arrays with the zarr library (2 or 3), to a folder or .zip file; does not compress the `plain`."""
    version_3, zipped = not zarr.__version__.startswith("2"), path.suffix == ".zip"
    folder_store = getattr(zarr.storage, "LocalStore" if version_3 else "DirectoryStore")
    store = zarr.storage.ZipStore(path, mode="w") if zipped else folder_store(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fixed-length strings have no settled zarr v3 form
        root = zarr.open_group(store, mode="w", zarr_format=2) if version_3 else zarr.group(store, overwrite=not zipped)
        for name, values in arrays.items():
            rows = len(values) if values.ndim == 2 and chunk_rows is not None else 0
            chunks = (min(chunk_rows or 1, rows), *values.shape[1:]) if rows else values.shape
            own = {"shape": values.shape, "dtype": values.dtype, "chunks": chunks}
            codec = None if name in plain else compressor
            if version_3:
                config = {"write_empty_chunks": write_empty_chunks}
                array = root.create_array(name, **own, compressors=codec, config=config)
            else:  # a zip file of zarr 2 cannot leave chunks out
                empty = write_empty_chunks or zipped
                array = root.create_dataset(name, **own, compressor=codec, write_empty_chunks=empty)
            if values.size:
                array[...] = values
    store.close()
    return path


class LabelFolder:
    """Writes label files into a temporary folder, and makes data sets of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.basis_info = WATER_BASIS
        self.rng = np.random.default_rng(0)
        self.written: dict[Path, dict[str, np.ndarray]] = {}

    def write(
        self,
        name: str = "water.zarr.zip",
        atomic_numbers: Sequence[int] = (8, 1, 1),
        n_scf: int = 4,
        change: Callable[[dict[str, np.ndarray]], Any] | None = None,
        **options: Any,
    ) -> Path:
        """Writes one file; `change` alters its arrays first."""
        arrays = label_arrays(self.basis_info, self.rng, atomic_numbers, n_scf, mol_id=name.split(".")[0])
        if change is not None:
            change(arrays)
        self.written[self.folder / name] = arrays
        return write_zarr(self.folder / name, arrays, **options)

    def write_several(self) -> list[Path]:
        """Writes water, methane and formaldehyde, with 4, 3 and 5 SCF iterations."""
        files = {"water.zarr.zip": ((8, 1, 1), 4), "methane.zarr": ((6, 1, 1, 1, 1), 3)}
        files["formaldehyde.zarr.zip"] = ((6, 8, 1, 1), 5)
        return [self.write(name, *content) for name, content in files.items()]


@pytest.fixture
def loggers_stay_enabled() -> Iterator[None]:
    """Hydra's ``job_logging=disabled`` silences every logger of the process; other tests read what is logged."""
    level = logging.root.level
    yield
    logging.root.setLevel(level)
    for logger in logging.Logger.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            logger.disabled = False


def scf_samples_of(
    basis_info: BasisInfo, rng: np.random.Generator, molecules: list[list[int]], n_scf: int
) -> list[OFData]:
    """Builds several weighted samples of each molecule, molecule after molecule."""
    samples = []
    for m, numbers in enumerate(molecules):
        first = random_sample(basis_info, rng, numbers, f"molecule {m}")
        for i in range(n_scf):
            sample = random_sample(basis_info, rng, numbers, f"molecule {m}", i, bool(rng.random() < 0.8))
            sample.pos = first.pos
            sample.weight = torch.tensor([rng.choice([0.0, 1.0, 0.3, 2.0])], dtype=torch.float64)
            sample.other_weight = torch.tensor([rng.uniform(0.1, 3)], dtype=torch.float64)
            samples.append(sample)
    return samples


def _constant(value: Any) -> Any:
    """A fixture of the whole session: hypothesis may use it."""
    return pytest.fixture(scope="session")(lambda: value)


basis_info, some_bases, some_samples = map(_constant, (WATER_BASIS, bases(), sample_lists()))
make_sample, make_batch, scf_samples = map(_constant, (random_sample, collate, scf_samples_of))
write_arrays, make_label_arrays, naive = map(_constant, (write_zarr, label_arrays, naive_statistics))


@pytest.fixture
def labels(tmp_path: Path) -> LabelFolder:
    """A temporary folder for label files."""
    return LabelFolder(tmp_path)
