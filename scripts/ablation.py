"""Compares normalisations under one loss: python scripts/ablation.py --output ablation.

All arms use local frames and natural reparametrisation. A sixth of the geometries of each molecule and a sixth of the
other molecules are the tuning part: every arm gets the same number of trials of learning rate and scale on it. The rest
is divided into folds. Each fold tests a part of the geometries of every molecule (unseen geometries), and a part of the
molecules with one geometry (unseen molecules). Each arm trains on every fold with every seed. Each run writes a JSON
file, and a second call skips it. --overrides takes Hydra overrides of configs/train.yaml for every run.
"""

import argparse
import csv
import json
import logging
import math
import re
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning import Trainer, seed_everything
from omegaconf import DictConfig

from ofdft_norm.data.files import import_optional, write_text
from ofdft_norm.datamodule import OFDFTDataModule
from ofdft_norm.errors import ConfigError
from ofdft_norm.example.callbacks import quiet_lightning
from ofdft_norm.example.metrics import LabelErrors, name_error
from ofdft_norm.example.results import HEADINGS, MODEL, evaluate, iterate_batches
from ofdft_norm.hydra_app.readable_errors import find_config_dir, run_readably
from ofdft_norm.tables import format_rows
from ofdft_norm.units import find_unit

log = logging.getLogger(__name__)
Array = npt.NDArray[np.float64]

CENTRING = ("data/rescaling=dimension_wise", "data.rescaling.s_grad=1e6")  # larger than all gradients: lambda is 1
SCALINGS: dict[str, tuple[str, ...]] = {
    "no scaling": ("data/rescaling=none",),
    "one scale": ("data/rescaling=none",),
    "centring": CENTRING,
    "centring, one scale": CENTRING,
    "dimension-wise": ("data/rescaling=dimension_wise",),
    "equivariant": ("data/rescaling=equivariant",),
}
NOT_TUNED = ("no scaling", "centring")  # the network gets these coefficients as they are
REFERENCES = {"none": "none", "linear": "linear", "atomic": "atom_ref", "atomic, l = 0 only": "scalar_atom_ref"}
ARMS = (
    *(("none", scaling) for scaling in ("no scaling", "one scale", "centring, one scale", "dimension-wise")),
    *(("linear", scaling) for scaling in ("no scaling", "centring, one scale", "dimension-wise")),
    *(("atomic", scaling) for scaling in SCALINGS if scaling != "equivariant"),
    ("atomic, l = 0 only", "equivariant"),
)
BOTH = ("atomic", "dimension-wise")
TESTED = ("test", "test_molecules")
# the search minimises the product of these errors on the tuning part
SEARCHED = ("energy_mae_ground_state", "energy_mae_along_path", "gradient_mae")


@dataclass(frozen=True)
class Run:
    """One training of an arm; the errors of a search are those of the tuning part, `val`."""

    reference: str
    scaling: str
    fold: int
    seed: int
    epochs: int
    learning_rate: float
    scale: float
    search: bool

    @property
    def name(self) -> str:
        """Name of the run's file, without its ending."""
        arm = re.sub("[^a-z0-9]+", "_", f"{self.reference} {self.scaling}".lower())
        kind = "search" if self.search else "test"
        numbers = f"epochs{self.epochs}_rate{self.learning_rate:.3g}_scale{self.scale:.3g}"
        return f"{kind}_{arm}_fold{self.fold}_seed{self.seed}_{numbers}"


def trials(scaling: str, n: int) -> list[tuple[float, float]]:
    """Returns learning rates from 1e-3 to 1e-2 and scales from 0.01 to 10, spread over both ranges evenly.

    A scaling that is not tuned gets the same learning rates with the scale 1.
    """
    rates = [10 ** (-3 + (i * 0.6180339887 + 0.5) % 1) for i in range(n)]
    return [(rate, 1.0 if scaling in NOT_TUNED else 10 ** (-2 + 3 * (i + 0.5) / n)) for i, rate in enumerate(rates)]


def divide(names: Sequence[str], n_folds: int, seed: int = 0) -> list[dict[str, list[str]]]:
    """Divides label files into train, val (to tune, the same in every fold), test and test_molecules of each fold.

    Files ``<molecule>_<number>`` are geometries of a molecule. A molecule with such geometries always trains with its
    file of one geometry.
    """
    rng, groups = np.random.default_rng(seed), dict[str, list[str]]()
    for name in sorted(names):
        found = re.fullmatch(r"(.*)_\d{3}\.zarr(\.zip)?", name)
        groups.setdefault(found[1] if found else "", []).append(name)
    others = groups.pop("", [])
    tested = [("test", own) for own in groups.values()]
    tested.append(("test_molecules", [name for name in others if name.partition(".")[0] not in groups]))
    folds: list[dict[str, list[str]]] = [{"val": [], "test": [], "test_molecules": []} for _ in range(n_folds)]
    for part, own in tested:
        shuffled = rng.permutation(own).tolist()
        tuning, rest = np.split(np.array(shuffled, dtype=object), [len(shuffled) // 6])
        for fold, members in zip(folds, np.array_split(rest, n_folds), strict=True):
            fold["val"] += tuning.tolist()
            fold[part] += members.tolist()
    for fold in folds:
        fold["train"] = sorted(set(names) - {name for of_part in fold.values() for name in of_part})
    return [{part: sorted(of_part) for part, of_part in fold.items() if of_part} for fold in folds]


# --- runs -------------------------------------------------------------------------------------------------------------


def train_run(options: argparse.Namespace, run: Run) -> dict[str, dict[str, float]]:
    """Trains one run; returns the errors of its last weights by part."""
    quiet_lightning()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    torch.set_num_threads(1)
    seed_everything(run.seed, verbose=False)
    cfg = _compose(options, run)
    datamodule: OFDFTDataModule = instantiate(cfg.data)
    model = instantiate(cfg.model, learning_rate=run.learning_rate, coeff_scale=run.scale)
    off = ("logger", "enable_checkpointing", "enable_progress_bar")
    switches: dict[str, Any] = {**dict.fromkeys(off, False), "limit_val_batches": 0, "num_sanity_val_steps": 0}
    trainer: Trainer = instantiate(cfg.trainer, max_epochs=run.epochs, default_root_dir=options.output, **switches)
    trainer.fit(model, datamodule=datamodule)
    predict, normalizer = {MODEL: model.cpu().eval().predict}, datamodule.normalizer
    parts = [part for part in (("val",) if run.search else TESTED) if part in datamodule.parts.names()]
    measured = {part: evaluate(predict, iterate_batches(datamodule, part), normalizer, part)[0] for part in parts}
    return {part: rows[0].errors for part, rows in measured.items()}


def _compose(options: argparse.Namespace, run: Run) -> DictConfig:
    file = Path(options.output).absolute() / f"fold_{run.fold}.json"
    split = ["data/split=file", f"data.split.file={file}", "data.statistics.progress=false"]
    arm = [f"data/reference={REFERENCES[run.reference]}", *SCALINGS[run.scaling]]
    with initialize_config_dir(str(find_config_dir()), version_base="1.3"):
        return compose("train", [*options.overrides, *split, f"output_dir={file.parent}", *arm])


def write_folds(options: argparse.Namespace) -> DictConfig:
    """Writes the folds of the runs in a folder; refuses a folder of other runs; returns the configuration of a run."""
    with initialize_config_dir(str(find_config_dir()), version_base="1.3"):
        cfg = compose("train", overrides=list(options.overrides))
    source = instantiate(cfg.data.source)
    if source.energy_key is None:
        raise ConfigError(f"{type(source).__name__}: an ablation needs label files to divide (config: data/source)")
    folds = divide([Path(name).name for name in source.everything()], options.folds)
    common, path = {"overrides": list(options.overrides), "folds": folds}, options.output / "ablation.json"
    if path.exists() and json.loads(path.read_text()) != common:
        raise ConfigError(f"{path}: its runs have other folds or overrides: give another folder (--output)")
    write_text(path, json.dumps(common, indent=1))
    for fold, split in enumerate(folds):
        write_text(options.output / f"fold_{fold}.json", json.dumps(split, indent=1))
    return cfg


def results_of(options: argparse.Namespace, runs: Sequence[Run]) -> dict[Run, Any]:
    """Returns the errors of runs, after the runs without a file have run."""
    files = {run: options.output / "runs" / f"{run.name}.json" for run in runs}
    missing = [run for run, file in files.items() if not file.exists()]
    if missing:
        with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
            waiting = {pool.submit(train_run, options, run): run for run in missing}
            for n, future in enumerate(as_completed(waiting), len(runs) - len(missing) + 1):
                run = waiting[future]
                write_text(files[run], json.dumps({**asdict(run), "errors": future.result()}, indent=1))
                log.info("%d of %d: %s", n, len(files), run.name)
    return {run: json.loads(file.read_text())["errors"] for run, file in files.items()}


def choose(found: dict[Run, Any], arm: tuple[str, str], unit: str) -> tuple[float, float]:
    """Returns the learning rate and scale of an arm with the smallest product of the errors `SEARCHED`."""

    def score(run: Run) -> float:
        value = math.prod(found[run]["val"][name_error(quantity, unit)] for quantity in SEARCHED)
        return value if math.isfinite(value) else math.inf

    best = min((run for run in found if (run.reference, run.scaling) == arm), key=score)
    return best.learning_rate, best.scale


# --- table ------------------------------------------------------------------------------------------------------------


def paired_p_value(errors: Array, others: Array) -> float:
    """Returns the p-value of a paired t-test on the logarithms of two errors of each fold."""
    if np.array_equal(errors, others) or len(errors) < 2:
        return 1.0
    return float(import_optional("scipy.stats", "labels").ttest_rel(np.log(errors), np.log(others)).pvalue)


def write_tables(options: argparse.Namespace, results: dict[Run, Any], chosen: dict[Any, Any], cfg: DictConfig) -> str:
    """Writes ``ablation.csv`` and ``ablation.txt``; returns the tables: mean (standard deviation over folds)."""
    unit, headings = str(cfg.data.unit), HEADINGS[LabelErrors]
    rows_of_file: list[list[Any]] = [["part", "reference", "scaling", "error", "mean", "std", "p_value", "folds"]]
    tables = []
    for part in (part for part in TESTED if any(part in errors for errors in results.values())):
        cells = [["reference", "scaling", *(second for _, second in headings.values())]]
        for arm in chosen:
            shown_errors = []
            for quantity in headings:
                name = name_error(quantity, unit)
                own, both = (_by_fold(results, of, part, name) for of in (arm, BOTH if BOTH in chosen else arm))
                p = paired_p_value(own, both)
                spread = own.std(ddof=1) if len(own) > 1 else math.nan
                rows_of_file.append([part, *arm, name, own.mean(), spread, p, " ".join(map(repr, own.tolist()))])
                shown_errors.append(
                    f"{own.mean():.1f} ({spread:.1f}){'**' if p < 0.01 else ' *' if p < 0.05 else '  '}"
                )
            cells.append([*arm, *shown_errors])
        heading = [f"{part}, {find_unit(unit).small}", "", *(first for first, _ in headings.values())]
        tables.append(format_rows(heading, cells, n_left=2))
    found = [[*arm, f"{rate:.2g}", f"{scale:.2g}"] for arm, (rate, scale) in chosen.items()]
    tables.append(format_rows(["reference", "scaling", "learning rate", "scale"], found, n_left=2))
    about = (
        f"loss: {cfg.model.energy_weight:g} |E error| + {cfg.model.gradient_weight:g} |projected gradient error|, "
        f"original coordinates\n{options.epochs} epochs, {options.folds} folds, {len(options.seeds)} seeds; "
        f"{options.trials} trials of {options.search_epochs} epochs for each arm\n"
        f"mean (standard deviation over folds); paired t-test over folds against {', '.join(BOTH)}: * p < 0.05, "
        "** p < 0.01"
    )
    text = "\n\n".join([about, *tables])
    write_text(options.output / "ablation.txt", text + "\n")
    with (options.output / "ablation.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows_of_file)
    return text


def _by_fold(results: dict[Run, Any], arm: tuple[str, str], part: str, name: str) -> Array:
    """Returns the errors of an arm, (n_folds,): means over seeds."""
    runs = [run for run in results if (run.reference, run.scaling) == arm and part in results[run]]
    folds = sorted({run.fold for run in runs})
    return np.array([np.mean([results[run][part][name] for run in runs if run.fold == fold]) for fold in folds])


def ablate(options: argparse.Namespace) -> str:
    """Runs the missing part of an ablation; returns its tables."""
    cfg, arms = write_folds(options), [arm for arm in ARMS if not options.arms or f"{arm[0]}+{arm[1]}" in options.arms]
    unit, rest = str(cfg.data.unit), (0, options.seeds[0], options.search_epochs)
    tried = [Run(*arm, *rest, *trial, True) for arm in arms for trial in trials(arm[1], options.trials)]
    found = results_of(options, tried)
    chosen = {arm: choose(found, arm, unit) for arm in arms}
    wanted = product(options.seeds, range(options.folds), arms)  # complete comparisons first
    runs = [Run(*arm, fold, seed, options.epochs, *chosen[arm], False) for seed, fold, arm in wanted]
    return write_tables(options, results_of(options, runs), chosen, cfg)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("--output", required=True, type=Path, help="folder of the runs' results and tables")
    add("--overrides", nargs="*", default=(), help="Hydra overrides for every run")
    add("--arms", nargs="*", choices=["+".join(arm) for arm in ARMS], help="what to compare; all by default")
    add("--epochs", type=int, default=12, help="of each run")
    add("--search-epochs", type=int, default=6, help="of each run of the search")
    add("--trials", type=int, default=6, help="of learning rate and scale for each arm")
    add("--folds", type=int, default=5, help="test splits of the geometries and molecules")
    add("--seeds", nargs="+", type=int, default=(0, 1, 2), help="each trains every fold")
    add("--workers", type=int, default=2, help="processes, one thread each")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    run_readably(lambda: print(ablate(options)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
