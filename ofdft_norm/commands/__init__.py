"""The command ``ofdft-norm``: each of its subcommands is a module of this folder with a function `main`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from ofdft_norm.errors import did_you_mean

# name of the command: its module, what it does, and whether Hydra reads the rest of the line
COMMANDS = {
    "train": ("train", "train the worked example, or what your configuration says", True),
    "fit": ("fit_statistics", "fit statistics ahead of training, and print them", True),
    "predict": ("predict", "predict with a checkpoint", True),
    "labels": ("generate_labels", "make labels from geometries with Kohn-Sham DFT (PySCF)", False),
    "report": ("report", "write what a run, or statistics, say as one HTML page", False),
    "pack": ("pack_labels", "pack label files into a few large arrays", False),
    "ablation": ("ablation", "compare normalisations, each tuned alike (hours)", False),
    "benchmark": ("benchmark", "measure what the package costs on this machine", False),
}


def usage() -> str:
    """Returns the text of ``ofdft-norm --help``."""
    lines = [f"  {name:10} {what}" for name, (_, what, _) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: ofdft-norm COMMAND ...      (ofdft-norm COMMAND --help: its options)",
            "",
            *lines,
            "",
            "train, fit and predict take Hydra overrides: ofdft-norm train data=ofdft_norm trainer.max_epochs=2",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code.

    Args:
        arguments: The words after ``ofdft-norm``; None: those that this process was started with.
    """
    name, *rest = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name == "--version":
        from ofdft_norm.version import __version__

        print(__version__)
        return 0
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS)
        print(f"error: ofdft-norm has no command {name!r}{hint}\n\n{usage()}", file=sys.stderr)
        return 2
    module_name, _, reads_overrides = COMMANDS[name]
    module = import_module(f"ofdft_norm.commands.{module_name}")
    # Lightning starts the other processes of a run with the first word: it has to be a file that Python can run
    sys.argv = [str(module.__file__) if reads_overrides else f"ofdft-norm {name}", *rest]
    return module.main() or 0
