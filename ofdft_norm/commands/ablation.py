"""Compares normalisations fairly: ofdft-norm ablation --output ablation.

Takes about half an hour on two cores; started again, it continues where it stopped. After --overrides follow Hydra
overrides of configs/train.yaml for every run.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from ofdft_norm.config.readable_errors import explain
from ofdft_norm.errors import OFDFTNormError
from ofdft_norm.example.ablation import AblationSettings, ablate
from ofdft_norm.example.ablation_report import write_ablation
from ofdft_norm.example.arms import ARMS


def build_parser() -> argparse.ArgumentParser:
    """Returns the command line's parser; defaults are those of `AblationSettings`."""
    defaults = AblationSettings(Path())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--output", required=True, type=Path, help="folder of the runs' results, table and plot")
    parser.add_argument("--overrides", nargs="*", default=[], help="Hydra overrides for every run")
    parser.add_argument("--arms", nargs="+", default=list(defaults.arms), choices=list(ARMS), help="what to compare")
    parser.add_argument("--epochs", type=int, default=defaults.epochs, help="of each run")
    parser.add_argument("--search-epochs", type=int, default=defaults.search_epochs, help="of each run of the search")
    parser.add_argument("--learning-rates", nargs="+", type=float, default=list(defaults.learning_rates), help="to try")
    parser.add_argument("--input-scales", nargs="+", type=float, default=list(defaults.input_scales), help="to try")
    parser.add_argument("--folds", type=int, default=defaults.n_folds, help="test splits of the molecules")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(defaults.seeds), help="each trains every fold")
    parser.add_argument("--workers", type=int, default=defaults.workers, help="processes, one thread each")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code.

    Args:
        arguments: Words of the command line after the command's name; None: those of the process.
    """
    options = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    try:
        settings = AblationSettings(
            output=options.output,
            overrides=tuple(options.overrides),
            arms=tuple(options.arms),
            epochs=options.epochs,
            search_epochs=options.search_epochs,
            learning_rates=tuple(options.learning_rates),
            input_scales=tuple(options.input_scales),
            n_folds=options.folds,
            seeds=tuple(options.seeds),
            workers=options.workers,
        )
        print(write_ablation(ablate(settings), settings.output))
    except (OFDFTNormError, HydraException, OmegaConfBaseException) as error:
        print(explain(error, options.overrides), file=sys.stderr)
        return 1
    return 0
