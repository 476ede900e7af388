"""The settings of a fit of statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ofdft_norm.errors import ConfigError
from ofdft_norm.settings import Positive, PositiveInt, Settings
from ofdft_norm.statistics.distributed import DEFAULT_MINUTES
from ofdft_norm.statistics.sample_weighers import HasEnergyLabelSampleWeigher, SampleWeigher


class StatisticsConfig(Settings):
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
        rank_timeout: Minutes that ranks wait for one another; one that does not answer is an error on all of them.
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
    rank_timeout: Positive = DEFAULT_MINUTES
    progress: bool = True
    config_key = "data.statistics"

    def __post_init__(self) -> None:
        keys = [w.summary_string() for w in self.weighers]
        if self.path is None and self.weigher_key not in keys:
            raise ConfigError(
                f"data.statistics.weigher_key = {self.weigher_key!r} is not among the weighers that are fitted: {keys} "
                "(config: data.statistics.weighers)"
            )
