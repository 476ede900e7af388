"""The arms of an ablation, runs that differ in their normalisation alone, and the table that ends a sweep of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from ofdft_norm.errors import counted

if TYPE_CHECKING:
    from ofdft_norm.example.results import ResultRow

NO_NORMALIZATION = ("data/reference=none", "data/rescaling=none")
GLOBAL_SCALE = "one global scale"
ARMS: dict[str, tuple[str, ...]] = {
    "none": NO_NORMALIZATION,
    GLOBAL_SCALE: (*NO_NORMALIZATION, "data.energy_scale=std"),
    "reference only": ("data/reference=atom_ref", "data/rescaling=none"),
    "rescaling only": ("data/reference=none", "data/rescaling=dimension_wise"),
    "both": ("data/reference=atom_ref", "data/rescaling=dimension_wise"),
    "equivariant both": ("data/reference=scalar_atom_ref", "data/rescaling=equivariant"),
}
MEANINGS = {
    "none": "a network on labels as they are",
    GLOBAL_SCALE: "a network on coefficients, gradients and energies that one number each divides",
    "reference only": "a network on labels minus the atomic reference",
    "rescaling only": "a network on labels after dimension-wise rescaling",
    "both": "a network on labels after the atomic reference and dimension-wise rescaling",
    "equivariant both": "the same with a reference and a rescaling that commute with rotations",
}
TABLE = "results.txt"
_SAME = 1e-3  # relative difference of a baseline's errors between arms


class TableOfArms(Callback):
    """Ends a sweep with one table of all its runs, on the screen and as ``results.txt`` in the sweep's folder."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Reads what the runs have written; nothing where none has."""
        from ofdft_norm.data.files import write_text  # not when a sweep starts: it takes seconds

        folder = Path(config.hydra.sweep.dir)
        runs = read_runs(folder)
        if runs:
            table = table_of_runs(runs)
            write_text(folder / TABLE, table + "\n")
            print(f"{counted(len(runs), 'run')}:\n{table}\nfolder of all runs: {folder.absolute()}")


@dataclass(frozen=True)
class SweptRun:
    """A run of a sweep.

    Attributes:
        overrides: Its Hydra overrides.
        rows: What it has measured.
    """

    overrides: tuple[str, ...]
    rows: list[ResultRow]


def read_runs(folder: Path) -> list[SweptRun]:
    """Returns the runs of a sweep's folder that have results of density coefficients, in the order of their numbers.

    Args:
        folder: The sweep's folder, with a folder for each run.
    """
    from ofdft_norm.example.results import read_csv

    found = {}
    for path in folder.glob("*/results.csv"):
        hydra = OmegaConf.load(path.parent / ".hydra" / "hydra.yaml").hydra
        unit = OmegaConf.load(path.parent / "config.yaml").data.unit
        found[int(hydra.job.num)] = SweptRun(tuple(hydra.overrides.task), read_csv(path, unit))
    return [found[number] for number in sorted(found)]


def table_of_runs(runs: list[SweptRun]) -> str:
    """Returns the errors of each run's model, under the baselines that all runs share.

    Args:
        runs: The runs, at least one.
    """
    from ofdft_norm.example.results import MODEL, WITHOUT_NETWORK, format_table

    names = arm_names([run.overrides for run in runs])
    rows: list[ResultRow] = []
    for split in dict.fromkeys(row.split for row in runs[0].rows):
        of_run = [{row.predictor: row for row in run.rows if row.split == split} for run in runs]
        for name, row in of_run[0].items():
            if name != MODEL and all(name in other and _equal(other[name], row) for other in of_run):
                rows.append(replace(row, predictor=f"{name}, no network"))
        rows += [replace(own[MODEL], predictor=name) for name, own in zip(names, of_run, strict=True) if MODEL in own]
    return format_table(rows, {**WITHOUT_NETWORK, **MEANINGS})


def arm_names(overrides: list[tuple[str, ...]]) -> list[str]:
    """Returns what each run is called: its arm, if it is one, and whatever else only some runs have.

    Args:
        overrides: Of each run.

    Example:
        >>> both = ("data/reference=atom_ref", "data/rescaling=dimension_wise", "seed=1")
        >>> arm_names([("data/reference=none", "data/rescaling=none", "seed=1"), both, (*both, "model.width=8")])
        ['none', 'both', 'both, model.width=8']
    """
    common = set(overrides[0]).intersection(*overrides)
    names = []
    for own in overrides:
        differing = [override for override in own if override not in common]
        arms = [arm for arm, settings in ARMS.items() if set(settings) <= set(differing)]
        arm = max(arms, key=lambda arm: len(ARMS[arm]), default=None)
        rest = [override for override in differing if arm is None or override not in ARMS[arm]]
        names.append(", ".join([*([] if arm is None else [arm]), *rest]))
    return names


def _equal(one: ResultRow, other: ResultRow) -> bool:
    """Whether errors are the same, but for what normalised labels in single precision make of them."""
    pairs = [(error, other.errors[name]) for name, error in one.errors.items()]
    return all(math.isclose(a, b, rel_tol=_SAME) or (math.isnan(a) and math.isnan(b)) for a, b in pairs)
