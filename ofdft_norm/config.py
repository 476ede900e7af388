"""The schema of the data module's configuration: every key, its meaning, its default.

These classes are what the files of ``configs/data/`` instantiate, and what Python callers pass to `OFDFTDataModule`.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ofdft_norm.data.basis_info import BasisInfo
from ofdft_norm.data.embedded_data import EMBEDDED_DATA
from ofdft_norm.data.of_dataset import OFDataset, Transform
from ofdft_norm.data.split import check_split, random_split
from ofdft_norm.data.split_files import read_split_file
from ofdft_norm.errors import ConfigError
from ofdft_norm.statistics.sample_weighers import HasEnergyLabelSampleWeigher, SampleWeigher


@dataclass(frozen=True)
class Split:
    """Which molecules train, validate and test. Molecules are never divided, and SCF iterations stay together.

    Attributes:
        train: Share of the molecules to train on, 0 ... 1.
        val: Share to validate on.
        test: Share to test on.
        seed: Seed of the random split.
        file: A YAML, JSON or npz file with lists of label files for `train`, `val`, `test`; then the shares and the
            seed are not used.
    """

    train: float = 0.8
    val: float = 0.1
    test: float = 0.1
    seed: int = 0
    file: str | None = None


@dataclass(frozen=True)
class LabelFiles:
    """Label files in STRUCTURES25's layout, one molecule each.

    Attributes:
        paths: Folders (all ``*.zarr`` and ``*.zarr.zip`` in them), glob patterns, or files.
        basis_info: JSON file with `atomic_numbers` and `irreps_per_atom`.
        energy_key: Which energy below ``of_labels/energies`` is learned.
        gradient_key: Its gradient below ``of_labels/spatial``.
        limit_scf_iterations: Indices of the SCF iterations to use, negative ones from the end; None: all.
        keep_initial_guess: Whether iteration 0, which has no label, is part of the data set.
        exclude: Names of label files to leave out.
        keep_in_memory: Keep each normalised sample after it was first read.
    """

    paths: str | Sequence[str]
    basis_info: str
    energy_key: str = "e_kin"
    gradient_key: str = "grad_kin"
    limit_scf_iterations: int | Sequence[int] | None = None
    keep_initial_guess: bool = True
    exclude: Sequence[str] = ()
    keep_in_memory: bool = False

    def basis(self) -> BasisInfo:
        """Reads the basis."""
        return BasisInfo.from_json(self.basis_info)

    def label_files(self) -> list[Path]:
        """Lists the label files, sorted; see `paths` and `exclude`.

        Raises:
            ConfigError: If a pattern matches nothing, or an excluded file is not there.
        """
        found: set[Path] = set()
        for pattern in [self.paths] if isinstance(self.paths, str) else list(self.paths):
            matches = [Path(match) for match in glob.glob(str(Path(pattern).expanduser()))]
            files = [file for match in matches for file in _label_files_at(match)]
            if not files:
                raise ConfigError(f"{pattern}: no label file (*.zarr, *.zarr.zip) there (config: data.source.paths)")
            found.update(files)
        excluded = set(self.exclude)
        unknown = excluded - {path.name for path in found}
        if unknown:
            raise ConfigError(f"exclude names {sorted(unknown)}, which are not among the label files (config: data.source.exclude)")
        return sorted(path for path in found if path.name not in excluded)

    def split_files(self, split: Split) -> tuple[dict[str, list[Path]], dict[Path, int]]:
        """Returns the label files of each part, and the number of SCF iterations of those where the split says it."""
        if split.file is None:
            shares = {"train": split.train, "val": split.val, "test": split.test}
            return random_split(self.label_files(), shares, split.seed, str(self.paths)), {}
        known = {path.name: path for path in self.label_files()}
        parts, iterations = read_split_file(Path(split.file))
        located = {part: [known.get(name, Path(name)) for name in names] for part, names in parts.items()}
        check_split(located, split.file)
        return located, {known[name]: n for name, n in iterations.items() if name in known}

    def datasets(self, split: Split, transform: Transform | None) -> dict[str, OFDataset]:
        """Builds the data set of each part of the split; parts without molecules are left out."""
        parts, iterations = self.split_files(split)
        basis_info = self.basis()
        return {
            part: OFDataset(
                paths,
                basis_info,
                self.energy_key,
                self.gradient_key,
                transform,
                self.limit_scf_iterations,
                self.keep_initial_guess,
                [iterations[p] for p in paths] if all(p in iterations for p in paths) else None,
            )
            for part, paths in parts.items()
            if paths
        }


def _label_files_at(path: Path) -> list[Path]:
    if path.name.endswith((".zarr", ".zarr.zip")):
        return [path]
    return [p for p in path.iterdir() if p.name.endswith((".zarr", ".zarr.zip"))] if path.is_dir() else []


@dataclass(frozen=True)
class EmbeddedLabels(LabelFiles):
    """The labels that come with the package: small molecules of H, C, N, O, F; see `ofdft_norm.data.embedded_data`."""

    paths: str | Sequence[str] = str(EMBEDDED_DATA / "labels")
    basis_info: str = str(EMBEDDED_DATA / "basis_info.json")
    keep_in_memory: bool = True


@dataclass(frozen=True)
class AtomicReference:
    """The atomic reference, linear in coefficients and composition (`AtomRef`).

    Attributes:
        scalar_only: Use the coefficients' mean gradient for l = 0 only.
    """

    scalar_only: bool = False

    @property
    def statistics_name(self) -> str:
        """Name of this reference among the statistics."""
        return "scalar_atom_ref" if self.scalar_only else "atom_ref"


@dataclass(frozen=True)
class LinearReference:
    """A reference energy for each element (`LinearReferences`), fitted on the training split or given.

    Attributes:
        values: Given energies [hartree] by element symbol or atomic number; None: fitted.
        file: A .pt or .npz file with `element_references` [hartree]; None: fitted.
        ridge: Relative ridge of the fit; 0: the solution of minimum norm.
        unseen_elements: ``error`` refuses atoms of elements without a reference, ``zero`` gives them none.
        max_num_elements: Largest atomic number.
    """

    values: Mapping[str | int, float] | None = None
    file: str | None = None
    ridge: float = 0.0
    unseen_elements: Literal["error", "zero"] = "error"
    max_num_elements: int = 118

    def __post_init__(self) -> None:
        if self.values is not None and self.file is not None:
            raise ConfigError("data.reference gives both values and file: keep one of them")
        if not 0 <= self.ridge < float("inf"):
            raise ConfigError(f"data.reference.ridge = {self.ridge}: expected a number >= 0")

    @property
    def statistics_name(self) -> str:
        """Name of this reference among the statistics."""
        return "linear_ref"


@dataclass(frozen=True)
class Rescaling:
    """Dimension-wise rescaling of coefficients and gradients (`DimensionWiseRescaling`).

    Attributes:
        equivariant: One scale for all components of a shell, no bias for l > 0.
        s_coeff: Maximal scale of the rescaled coefficients.
        s_grad: Target scale of the rescaled gradients [hartree].
        epsilon: Added to lambda where gradients are divided.
    """

    equivariant: bool = False
    s_coeff: float = 50
    s_grad: float = 0.05
    epsilon: float = 1e-8


@dataclass(frozen=True)
class Statistics:
    """How the training split is measured, and where results are kept.

    Attributes:
        dir: Folder of fitted statistics, one directory for each fingerprint; None: ``$OFDFT_NORM_CACHE``, else
            ``~/.cache/ofdft_norm/statistics``.
        path: A given statistics directory, used instead of fitting.
        weigher_key: Whose statistics normalise.
        weighers: Sample weighers of coefficients, gradients and references.
        initial_guess_weighers: Sample weighers of the initial guess's deviation from the ground state.
        with_bias: Whether the atomic reference has a constant.
        min_atoms_per_type: An element seen on fewer atoms than this is an error.
        n_batches: Fit on the first batches of 32 molecules only; None: on all.
        residuals: Make a second pass that measures what the references leave.
        fingerprint: ``mtime`` recognises label files by size and modification time, ``contents`` reads them.
        progress: Show a progress bar.
    """

    dir: str | None = None
    path: str | None = None
    weigher_key: str = "has_energy_label"
    weighers: Sequence[SampleWeigher] = (HasEnergyLabelSampleWeigher(),)
    initial_guess_weighers: Sequence[SampleWeigher] = ()
    with_bias: bool = True
    min_atoms_per_type: int = 1
    n_batches: int | None = None
    residuals: bool = True
    fingerprint: Literal["mtime", "contents"] = "mtime"
    progress: bool = True

    def __post_init__(self) -> None:
        if self.fingerprint not in ("mtime", "contents"):
            raise ConfigError(f"data.statistics.fingerprint = {self.fingerprint!r}: expected 'mtime' or 'contents'")
        keys = [w.summary_string() for w in self.weighers]
        if self.path is None and self.weigher_key not in keys:
            raise ConfigError(
                f"data.statistics.weigher_key = {self.weigher_key!r} is not among the weighers that are fitted: {keys} "
                "(config: data.statistics.weighers)"
            )


@dataclass(frozen=True)
class Loader:
    """PyG's DataLoader for each split.

    Attributes:
        batch_size: Samples in a batch, on each rank.
        num_workers: Worker processes.
        pin_memory: Copy batches to page-locked memory, for GPUs.
        persistent_workers: Keep workers alive between epochs.
        multiprocessing_context: ``fork``, ``spawn`` or ``forkserver``; None: the platform's default.
        shuffle: Whether the training split is shuffled.
    """

    batch_size: int = 32
    num_workers: int = 0
    pin_memory: bool = False
    persistent_workers: bool = False
    multiprocessing_context: Literal["fork", "spawn", "forkserver"] | None = None
    shuffle: bool = True

    def keywords(self) -> dict[str, Any]:
        """Returns the arguments for PyG's DataLoader."""
        return {
            "batch_size": self.batch_size,
            "num_workers": self.num_workers,
            "pin_memory": self.pin_memory,
            "persistent_workers": self.persistent_workers and self.num_workers > 0,
            "multiprocessing_context": self.multiprocessing_context if self.num_workers > 0 else None,
            "follow_batch": ["coeffs"],
        }


def nothing() -> None:
    """Stands for "none" in config groups: a group's file cannot itself be null."""
