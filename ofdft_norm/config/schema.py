"""The schema of the data module's configuration: every key, its meaning, its default.

These classes are what the files of ``configs/data/`` instantiate, and what Python callers pass to `OFDFTDataModule`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ofdft_norm.config.checks import AtomicNumber, CheckedConfig, NonNegative, NonNegativeInt, Positive, PositiveInt
from ofdft_norm.errors import ConfigError
from ofdft_norm.statistics.references import linear_reference_name
from ofdft_norm.statistics.sample_weighers import HasEnergyLabelSampleWeigher, SampleWeigher


@dataclass(frozen=True)
class AtomicReference(CheckedConfig):
    """The atomic reference, linear in coefficients and composition (`AtomRef`).

    Attributes:
        scalar_only: Use the coefficients' mean gradient for l = 0 only.
    """

    scalar_only: bool = False
    config_key = "data.reference"

    @property
    def statistics_name(self) -> str:
        """Name of this reference among the statistics."""
        return "scalar_atom_ref" if self.scalar_only else "atom_ref"


@dataclass(frozen=True)
class LinearReference(CheckedConfig):
    """A reference energy for each element (`LinearReferences`), fitted on the training split or given.

    Attributes:
        values: Given energies [hartree] by element symbol or atomic number; None: fitted.
        file: A .pt or .npz file with `element_references` [hartree]; None: fitted.
        ridge: Relative ridge of the fit; 0: the solution of minimum norm.
        count_by: What counts once in the fit: every ``molecule``, with the mean of its samples, or every ``sample``.
        unseen_elements: ``error`` refuses atoms of elements without a reference, ``zero`` gives them none.
        max_num_elements: Largest atomic number.
    """

    values: Mapping[str | int, float] | None = None
    file: str | None = None
    ridge: NonNegative = 0.0
    count_by: Literal["molecule", "sample"] = "molecule"
    unseen_elements: Literal["error", "zero"] = "error"
    max_num_elements: AtomicNumber = 118
    config_key = "data.reference"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.values is not None and self.file is not None:
            raise ConfigError(
                "data.reference gives both values and file: keep one of them (data.reference.values=null)"
            )

    @property
    def statistics_name(self) -> str:
        """Name of this reference among the statistics."""
        return linear_reference_name(self.count_by)


@dataclass(frozen=True)
class Rescaling(CheckedConfig):
    """Dimension-wise rescaling of coefficients and gradients (`DimensionWiseRescaling`).

    Attributes:
        equivariant: One scale for all components of a shell, no bias for l > 0.
        s_coeff: Maximal scale of the rescaled coefficients.
        s_grad: Target scale of the rescaled gradients [hartree].
        epsilon: Added to lambda where gradients are divided.
    """

    equivariant: bool = False
    s_coeff: Positive = 50
    s_grad: Positive = 0.05
    epsilon: NonNegative = 1e-8
    config_key = "data.rescaling"


@dataclass(frozen=True)
class Statistics(CheckedConfig):
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
        trust_shared: Use fitted statistics that other users may have written into `dir`.
        progress: Show a progress bar.
    """

    dir: str | None = None
    path: str | None = None
    weigher_key: str = "has_energy_label"
    weighers: Sequence[SampleWeigher] = (HasEnergyLabelSampleWeigher(),)
    initial_guess_weighers: Sequence[SampleWeigher] = ()
    with_bias: bool = True
    min_atoms_per_type: PositiveInt = 1
    n_batches: PositiveInt | None = None
    residuals: bool = True
    fingerprint: Literal["mtime", "contents"] = "mtime"
    trust_shared: bool = False
    progress: bool = True
    config_key = "data.statistics"

    def __post_init__(self) -> None:
        super().__post_init__()
        keys = [w.summary_string() for w in self.weighers]
        if self.path is None and self.weigher_key not in keys:
            raise ConfigError(
                f"data.statistics.weigher_key = {self.weigher_key!r} is not among the weighers that are fitted: {keys} "
                "(config: data.statistics.weighers)"
            )


@dataclass(frozen=True)
class Loader(CheckedConfig):
    """PyG's DataLoader for each split.

    Attributes:
        batch_size: Samples in a batch, on each rank.
        num_workers: Worker processes.
        pin_memory: Copy batches to page-locked memory, for GPUs.
        persistent_workers: Keep workers alive between epochs.
        multiprocessing_context: ``fork``, ``spawn`` or ``forkserver``; None: the platform's default.
        shuffle: Whether the training split is shuffled.
    """

    batch_size: PositiveInt = 32
    num_workers: NonNegativeInt = 0
    pin_memory: bool = False
    persistent_workers: bool = False
    multiprocessing_context: Literal["fork", "spawn", "forkserver"] | None = None
    shuffle: bool = True
    config_key = "data.loader"

    def keywords(self) -> dict[str, Any]:
        """Returns the arguments for PyG's DataLoader."""
        return {
            "batch_size": self.batch_size,
            "num_workers": self.num_workers,
            "pin_memory": self.pin_memory,
            "persistent_workers": self.persistent_workers and self.num_workers > 0,
            "multiprocessing_context": self.multiprocessing_context if self.num_workers > 0 else None,
        }


def nothing() -> None:
    """Stands for "none" in config groups: a group's file cannot itself be null."""
