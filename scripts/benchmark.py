"""Measures the package on this machine; every number is a ratio of two things timed side by side.

    python scripts/benchmark.py fit                  # the statistics fit: time, memory, processes
    python scripts/benchmark.py fit --only memory    # one part of it
    python scripts/benchmark.py packed               # packed labels: reading, packing, fitting, processes
    python scripts/benchmark.py loader               # the training loader from memory, packed labels and zip files
    python scripts/benchmark.py normalize            # normalising a batch: share of a training step, GPU bandwidth
    python scripts/benchmark.py references           # the fit of linear element references
    python scripts/benchmark.py pre_transforms       # local frames and natural reparametrisation

Runs of the two things compared alternate, and the median of their ratios counts, so that a machine that is busy with
other work distorts little.
"""

from __future__ import annotations

import argparse
import os

import torch
from benchmarks import fit, loader, normalize, packed, pre_transforms, references
from benchmarks.comparison import print_table


def main() -> None:
    """Parses the command line and runs a subcommand."""
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
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads, torch {torch.__version__}")
    if arguments.command in ("fit", "packed"):
        module = {"fit": fit, "packed": packed}[arguments.command]
        rows = module.measure(arguments.repeats, [arguments.only] if arguments.only else list(module.PARTS))
    else:
        modules = {
            "loader": loader,
            "normalize": normalize,
            "references": references,
            "pre_transforms": pre_transforms,
        }
        module = modules[arguments.command]
        rows = module.measure(arguments.repeats)
    print_table(rows)


if __name__ == "__main__":
    main()
