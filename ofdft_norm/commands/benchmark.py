"""Measures the package on this machine; every number is a ratio of two things timed side by side.

    ofdft-norm benchmark fit                  # the statistics fit: time, memory, processes
    ofdft-norm benchmark fit --only memory    # one part of it
    ofdft-norm benchmark packed               # packed labels: reading, packing, fitting, processes
    ofdft-norm benchmark loader               # the training loader from memory, packed labels and zip files
    ofdft-norm benchmark normalize            # normalising a batch: share of a training step, GPU bandwidth
    ofdft-norm benchmark references           # the fit of linear element references
    OMP_NUM_THREADS=1 ofdft-norm benchmark pre_transforms       # local frames and natural reparametrisation

The last counts processor time, also that of threads which wait for others: hence the one thread. Runs of the two things
compared alternate, and the median of their ratios counts, so that a machine that is busy with other work distorts
little.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

import torch

from ofdft_norm.benchmarks import fit, loader, normalize, packed, pre_transforms, references
from ofdft_norm.benchmarks.comparison import print_table


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line and runs a subcommand; returns its exit code.

    Args:
        arguments: Words of the command line after the command's name; None: those of the process.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="rounds of each comparison")
    commands = parser.add_subparsers(dest="command", required=True)
    of_fit = commands.add_parser("fit", help="the fit of dataset statistics")
    of_fit.add_argument("--only", choices=list(fit.PARTS), help="one part only")
    of_packed = commands.add_parser("packed", help="packed labels: reading, packing, fitting")
    of_packed.add_argument("--only", choices=list(packed.PARTS), help="one part only")
    commands.add_parser("loader", help="the training loader from memory, packed labels and zip files")
    commands.add_parser("references", help="the fit of linear element references")
    commands.add_parser("normalize", help="normalising batches")
    commands.add_parser("pre_transforms", help="local frames and natural reparametrisation")
    options = parser.parse_args(arguments)
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads, torch {torch.__version__}")
    if options.command in ("fit", "packed"):
        module = {"fit": fit, "packed": packed}[options.command]
        rows = module.measure(options.repeats, [options.only] if options.only else list(module.PARTS))
    else:
        modules = {
            "loader": loader,
            "normalize": normalize,
            "references": references,
            "pre_transforms": pre_transforms,
        }
        module = modules[options.command]
        rows = module.measure(options.repeats)
    print_table(rows)
    return 0
