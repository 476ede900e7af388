"""The command ``ofdft-norm``: train, fit and predict with Hydra; labels, pack and report with options.

All commands take their input as ``key=value``; labels, pack and report also as ``--key value``.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
from argparse import SUPPRESS, ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import hydra
from omegaconf import DictConfig, OmegaConf

from ofdft_norm.errors import ConfigError, counted, did_you_mean
from ofdft_norm.hydra_app.readable_errors import config_dir, run_readably

# Modules that take seconds to import are imported in the functions that need them.

COMMANDS = {
    "train": "Trains a model, by default the worked example, and writes a run folder.",
    "fit": "Fits the statistics of a training split ahead of training, and prints them.",
    "predict": "Predicts with a checkpoint, and writes npz, CSV or extended XYZ.",
    "labels": "Makes labels from geometries with Kohn-Sham DFT (PySCF), and checks them.",
    "pack": "Packs label files into a few large arrays, which training reads many times faster.",
    "report": "Writes a run's results, pictures and statistics as one HTML page.",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code; an error ends it with one message and code 1.

    Args:
        arguments: Words after ``ofdft-norm``; None: those of this process.
    """
    command, *words = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    if command in HYDRA_COMMANDS:
        run_readably(lambda: _run_hydra(command, words), (Exception,), words, command)
    elif command in OPTION_COMMANDS:
        return run_readably(lambda: _run_options(command, words), (Exception,))
    elif command in ("-h", "--help"):
        print(usage())
    elif command == "--version":
        print(import_module("ofdft_norm").__version__)
    else:
        hint = did_you_mean(command, COMMANDS)
        print(f"error: ofdft-norm has no command {command!r}{hint}\n\n{usage()}", file=sys.stderr)
        return 2
    return 0


def usage() -> str:
    """Returns the text of ``ofdft-norm --help``."""
    usage = "usage: ofdft-norm COMMAND [key=value ...]     (ofdft-norm COMMAND --help: its keys)\n"
    return "\n".join([usage, *(f"  {name:8} {about}" for name, about in COMMANDS.items())])


# --- commands with Hydra ----------------------------------------------------------------------------------------------


def _run_hydra(command: str, words: Sequence[str]) -> None:
    started = sys.argv

    def task(cfg: DictConfig) -> None:
        sys.argv = started  # Lightning starts the other processes of a run with these words
        try:
            HYDRA_COMMANDS[command](cfg)
        except Exception as error:  # Hydra would print a line before it
            raise SystemExit(error) from error

    sys.argv = [started[0], *words]
    try:
        hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=command)(task)()
    except SystemExit as stopped:
        if isinstance(stopped.code, Exception):
            raise stopped.code from stopped.code.__cause__
        raise
    finally:
        sys.argv = started


def _fit(cfg: DictConfig) -> None:
    """Fits, or finds, the statistics of the training split with all processes of torchrun; prints them on rank 0."""
    import torch.distributed as dist

    # the tables below have the content of the data module's messages
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    distributed = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if distributed:
        dist.init_process_group("gloo")
    try:
        datamodule = hydra.utils.instantiate(cfg.data)
        datamodule.setup("fit")
        if not distributed or dist.get_rank() == 0:
            print(f"{datamodule.summary()}\n\nstatistics: {datamodule.statistics.path}")
    finally:
        if distributed:
            dist.destroy_process_group()


HYDRA_COMMANDS: dict[str, Callable[[DictConfig], Any]] = {
    "train": lambda cfg: import_module("ofdft_norm.example.train").train(cfg),
    "fit": _fit,
    "predict": lambda cfg: import_module("ofdft_norm.example.predict").predict(cfg),
}


# --- commands with options --------------------------------------------------------------------------------------------


def _run_options(command: str, words: Sequence[str]) -> int:
    parser = ArgumentParser(f"ofdft-norm {command}", formatter_class=ArgumentDefaultsHelpFormatter)
    parser.description = COMMANDS[command]
    add_options, run = OPTION_COMMANDS[command]
    add_options(parser)
    options = parser.parse_args(_with_dashes(parser, words))
    options.command = shlex.join(["ofdft-norm", command, *words])
    return run(options)


def _with_dashes(parser: ArgumentParser, words: Sequence[str]) -> list[str]:
    """Turns ``key=value`` into ``--key value``; lists are ``key=[a,b]``, switches are ``key=true``."""
    actions = {action.dest: action for action in parser._actions}
    found: list[str] = []
    for word in words:
        name, equals, value = word.partition("=")
        action = actions.get(name.replace("-", "_")) if equals else None
        if action is None:
            found.append(word)
        elif action.nargs == 0:
            found += action.option_strings[:1] if value.lower() == "true" else []
        else:
            values = value.strip("[]").split(",") if action.nargs == "+" else [value]
            found += [*action.option_strings[:1], *map(str.strip, values)]
    return found


def _add_labels_options(parser: ArgumentParser) -> None:
    from ofdft_norm.labelling import LabelSettings
    from ofdft_norm.labelling.labels import TARGET_NAMES

    add, defaults = parser.add_argument, LabelSettings()
    parser.epilog = (
        "Molecules are neutral and closed-shell. Interrupted runs continue; new molecules are added to labels of equal "
        "settings. Exits with 1 if a molecule fails its checks, which then has no label file."
    )
    add("xyz", nargs="+", type=Path, help="XYZ or other files that ASE reads, in angstrom")
    add("--output", required=True, type=Path, help="folder of the label set")
    add("--workers", type=int, default=1, help="processes, one thread each")
    add("--shard", metavar="K/N", default="1/1", help="make every N-th molecule from the K-th on")
    of_targets = f"gradients to store, of {', '.join(TARGET_NAMES)}"
    add("--targets", nargs="+", metavar="T", choices=TARGET_NAMES, default=list(defaults.targets), help=of_targets)
    methods = "least_squares keeps the kinetic energy, constrained keeps electrons and external energy"
    add("--density-fit", choices=["least_squares", "constrained"], default=defaults.density_fit, help=methods)
    add("--beta", type=float, default=defaults.beta, help="ratio of exponents of the density basis")
    for name, text in (KOHN_SHAM_OPTIONS | CHECK_OPTIONS).items():
        default = getattr(defaults.kohn_sham, name, SUPPRESS)  # those of the checks depend on the density fit
        kind: Any = float if name in CHECK_OPTIONS else type(default)
        add(f"--{name.replace('_', '-')}", type=kind, default=default, help=text)


def _labels(options: Namespace) -> int:
    from ofdft_norm.labelling import CheckTolerances, KohnShamSettings, LabelSettings, generate_labels, report_table

    kohn_sham = KohnShamSettings(**{name: getattr(options, name) for name in KOHN_SHAM_OPTIONS})
    settings = LabelSettings(kohn_sham, options.beta, options.density_fit, tuple(options.targets))
    limits: Any = {name: getattr(options, name) for name in CHECK_OPTIONS if hasattr(options, name)}
    tolerances = replace(cast(Any, CheckTolerances.for_fit(options.density_fit)), **limits)
    how = (settings, tolerances, options.workers, options.shard, options.command)
    result = generate_labels(options.xyz, options.output, *how)
    print(f"{counted(len(result.made), 'molecule')} labelled in {options.output}, {len(result.kept)} had labels before")
    if result.made:
        print(report_table(list(result.made.values())))
    for mol_id, failure in sorted(result.failures.items()):
        print(f"failed: {mol_id}: {failure}", file=sys.stderr)
    return 1 if result.failures else 0


KOHN_SHAM_OPTIONS = {
    "xc": "LDA or GGA functional",
    "basis": "orbital basis; this one has the elements H to Ar",
    "grid_level": "quadrature grid, 0 to 9",
    "energy_tolerance": "converged when the energy changes by less [hartree] ...",
    "commutator_tolerance": "... and the norm of the orbital gradient is below this [hartree]",
    "min_labelled": "iterations that always run",
    "max_iterations": "more iterations are a failure",
    "damping": "share of the previous Fock matrix in the first iterations, 0 to 1",
}
CHECK_OPTIONS = {
    "electrons": "check: largest |w.p - N| / N",
    "fit_residual": "check: largest Coulomb energy of the residual density [hartree per electron]",
    "kinetic_shift": "check: largest |T_of - T_KS| [hartree]",
    "finite_difference": "check: largest relative error of an energy change that gradients predict",
}


def _add_pack_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    parser.epilog = "Then: ofdft-norm train data/source=packed data.source.paths=FOLDER"
    sources = "label files, folders or patterns; or a data set's folder of STRUCTURES25; or the word 'embedded'"
    add("source", nargs="+", help=sources)
    add("output", type=Path, help="folder of the packed set; must not exist, except with --verify")
    add("--basis-info", help="JSON file of the density basis, for label files")
    add("--labels", default="labels", help="folder of label files within a data set's folder")
    add("--exclude", nargs="+", default=[], help="names of label files to leave out")
    add("--targets", nargs="+", default=["kin"], help="kin (e_kin, grad_kin), kin_plus_xc, tot, ...")
    add("--pre-transforms", default="none", help="applied before packing: an option of data/pre_transforms")
    add("--dtype", default="float64", choices=["float64", "float32"], help="of coefficients and gradients")
    add("--workers", type=int, default=0, help="processes that read and transform beside this one")
    verify = "compare all digests, and every K-th molecule (100) with its labels; a set that exists is only verified"
    add("--verify", nargs="?", type=int, const=100, metavar="K", help=verify)


def _pack(options: Namespace) -> int:
    import torch

    from ofdft_norm.data.pack import pack_labels, verify_packed

    if options.verify is not None and options.verify < 1:
        raise ConfigError(f"--verify {options.verify}: expected 1 or more: every K-th molecule is compared")
    torch.set_num_threads(1)  # equal bits in every process
    source = _make_source(options)
    dataset = source.open("all", source.everything(), ())
    targets = [target.removeprefix("grad_").removeprefix("e_") for target in options.targets]
    how = (targets, _make_pre_transforms(options.pre_transforms), options.dtype)
    if options.verify is None or not options.output.exists():
        pack_labels(dataset, options.output, *how, options.workers)
        print(f"{counted(dataset.n_molecules, 'molecule')} in {options.output}")
    if options.verify is not None:
        n = verify_packed(dataset, options.output, *how, options.verify)
        print(f"{options.output}: all digests are right, and {counted(n, 'molecule')} equal the label files")
    return 0


def _make_source(options: Namespace) -> Any:
    from ofdft_norm.config import EmbeddedLabels, LabelFiles, Structures25Labels

    exclude, folder = options.exclude, Path(options.source[0]).expanduser().absolute()
    if options.source == ["embedded"]:
        return EmbeddedLabels(exclude=exclude)
    if options.basis_info is not None:
        return LabelFiles(options.source, options.basis_info, exclude=exclude)
    if not (folder / options.labels).is_dir():
        raise ConfigError(f"{options.source}: label files need the JSON file of their basis (option --basis-info)")
    root, name = str(folder.parent), folder.name
    return Structures25Labels(root=root, dataset=name, labels=options.labels, exclude=exclude)


def _make_pre_transforms(option: str) -> list[Callable[..., Any]]:
    folder = config_dir() / "data" / "pre_transforms"
    known = ["none", *sorted(path.stem for path in folder.glob("*.yaml"))]
    if option not in known:
        raise ConfigError(f"--pre-transforms {option}: expected one of {known}{did_you_mean(option, known)}")
    return [] if option == "none" else list(hydra.utils.instantiate(OmegaConf.load(folder / f"{option}.yaml")))


def _add_report_options(parser: ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, help="folder of a run")
    parser.add_argument("--output", type=Path, help="the page; None: report.html in the run's folder")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing page")


def _report(options: Namespace) -> int:
    from ofdft_norm.example.report import write_report

    page = write_report(options.run_dir, options.output or options.run_dir / "report.html", options.overwrite)
    print(f"report: {page}")
    return 0


OPTION_COMMANDS: dict[str, tuple[Callable[[ArgumentParser], None], Callable[[Namespace], int]]] = {
    "labels": (_add_labels_options, _labels),
    "pack": (_add_pack_options, _pack),
    "report": (_add_report_options, _report),
}

if __name__ == "__main__":
    sys.exit(main())
