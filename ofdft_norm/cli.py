"""The command ``ofdft-norm``: train, fit and predict with Hydra; labels, pack and report with a parser of options.

All commands take their input as ``key=value``; labels, pack and report also accept ``--key value``.
"""

import logging
import os
import shlex
import sys
import textwrap
from argparse import SUPPRESS, Action, ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn, cast

import hydra
from omegaconf import DictConfig, OmegaConf

from ofdft_norm.errors import ConfigError, did_you_mean, format_count
from ofdft_norm.hydra_app.readable_errors import find_config_dir, run_readably

# Modules that take seconds to import are imported in the functions that need them.

COMMANDS = {
    "train": "Trains a model (by default, the worked example) and writes a run folder.",
    "fit": "Fits the statistics of a training split before training, and prints them.",
    "predict": "Predicts with a checkpoint, and writes an npz, CSV or extended XYZ file.",
    "labels": "Computes labels of geometries with Kohn-Sham DFT (PySCF), and checks them.",
    "pack": "Packs label files into a few large arrays, which training reads many times faster.",
    "report": "Writes the results, plots and statistics of a run as one HTML page.",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the words after ``ofdft-norm`` and returns the exit code; an error ends it with one message and code 1."""
    command, *words = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    if command in HYDRA_COMMANDS:
        run_readably(lambda: _run_hydra(command, words), (Exception,), hints=True)
    elif command in OPTION_COMMANDS:
        return run_readably(lambda: _run_with_options(command, words), (Exception,))
    elif command in ("-h", "--help"):
        print(format_usage())
    elif command == "--version":
        print(import_module("ofdft_norm").__version__)
    else:
        hint = did_you_mean(command, COMMANDS)
        print(f"error: ofdft-norm has no command {command!r}{hint}\n\n{format_usage()}", file=sys.stderr)
        return 2
    return 0


def format_usage() -> str:
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
        except Exception as error:  # Hydra prints a line before any other exception
            raise SystemExit(error) from error

    sys.argv = [started[0], *words]
    try:
        hydra.main(version_base="1.3", config_path=str(find_config_dir()), config_name=command)(task)()
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


class _OptionParser(ArgumentParser):
    """Parser of ``key=value`` and ``--key value``; lists are ``key=[a,b]``, switches are ``key=true``."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message.replace(' --', ' ')} ({self.prog} --help: the keys)")

    def parse(self, words: Sequence[str]) -> Namespace:
        keys = {action.dest: action for action in self._actions}
        first, last, unnamed, options = list[str](), list[str](), list[str](), list[str]()
        for word in words:
            name, equals, value = word.partition("=")
            if not equals or word.startswith("-"):
                unnamed.append(word)
                continue
            action = keys.get(name.replace("-", "_"))
            if action is None:
                self.error(f"no key {name!r}{did_you_mean(name, keys)}")
            values = [v.strip() for v in value.strip("[]").split(",")] if action.nargs == "+" else [value]
            if not action.option_strings:
                (last if name == "output" else first).extend(values)
            elif action.nargs != 0:
                options += [action.option_strings[0], *values]
            elif value.lower() == "true":
                options.append(action.option_strings[0])
        return self.parse_intermixed_args([*first, *unnamed, *last, *options])

    def format_help(self) -> str:
        actions = [action for action in self._actions if action.dest != "help"]
        needed = [f"{action.dest}=..." for action in actions if action.required]
        lines = [" ".join([self.prog, *needed, "[key=value ...]"]), "", self.description or "", "", self.epilog or ""]
        lines += ["", "keys, with their default values", *map(_describe_key, actions)]
        return "\n".join([*lines, "", "--key value is accepted, too", ""])


def _describe_key(action: Action) -> str:
    value = action.default
    if isinstance(value, list):
        value = f"[{','.join(value)}]"
    elif value in (None, SUPPRESS):
        value = "..."
    key, space = f"  {action.dest}={str(value).lower() if value is False else value}", " " * 26
    text = textwrap.fill(str(action.help), 90, initial_indent=space, subsequent_indent=space)
    return f"{key:26}{text.lstrip()}" if len(key) < 26 else f"{key}\n{text}"


def _run_with_options(command: str, words: Sequence[str]) -> int:
    parser = _OptionParser(f"ofdft-norm {command}", description=COMMANDS[command])
    add_options, run = OPTION_COMMANDS[command]
    add_options(parser)
    options = parser.parse(words)
    options.command = shlex.join(["ofdft-norm", command, *words])
    return run(options)


def _add_labels_options(parser: ArgumentParser) -> None:
    from ofdft_norm.labelling import LabelSettings
    from ofdft_norm.labelling.labels import TARGET_NAMES

    add, defaults = parser.add_argument, LabelSettings()
    parser.epilog = (
        "reads   geometries of neutral closed-shell molecules (xyz)\n"
        "writes  a label set (output): labels/, basis_info.json, provenance.yaml\n\n"
        "With equal settings, an interrupted run continues, and new molecules are added. A molecule that fails\n"
        "its checks gets no label file, and the exit code is 1."
    )
    add("xyz", nargs="+", type=Path, help="XYZ or other files that ASE reads, in angstrom")
    add("--output", required=True, type=Path, help="folder of the label set")
    add("--workers", type=int, default=1, help="processes with one thread each")
    add("--shard", default="1/1", help="shard=3/16: every 16th molecule, from the third on")
    of_targets = f"gradients to store: some of {', '.join(TARGET_NAMES)}"
    add("--targets", nargs="+", choices=TARGET_NAMES, default=list(defaults.targets), help=of_targets)
    for name, text in (LABEL_OPTIONS | KOHN_SHAM_OPTIONS | CHECK_OPTIONS).items():
        default = getattr(defaults if name in LABEL_OPTIONS else defaults.kohn_sham, name, SUPPRESS)
        kind: Any = float if name in CHECK_OPTIONS else type(default)  # their defaults depend on the density fit
        add(f"--{name.replace('_', '-')}", type=kind, default=default, help=text)


def _run_labels(options: Namespace) -> int:
    from ofdft_norm.labelling import CheckTolerances, KohnShamSettings, LabelSettings, generate_labels, report_table

    kohn_sham = KohnShamSettings(**{name: getattr(options, name) for name in KOHN_SHAM_OPTIONS})
    own = {name: getattr(options, name) for name in LABEL_OPTIONS}
    settings = LabelSettings(kohn_sham, targets=tuple(options.targets), **own)
    limits: Any = {name: getattr(options, name) for name in CHECK_OPTIONS if hasattr(options, name)}
    tolerances = replace(cast(Any, CheckTolerances.for_fit(options.density_fit)), **limits)
    how = (settings, tolerances, options.workers, options.shard, options.command)
    result = generate_labels(options.xyz, options.output, *how)
    made = format_count(len(result.made), "molecule")
    print(f"{made} labelled in {options.output}, {len(result.kept)} had labels before")
    if result.made:
        print(report_table(list(result.made.values())))
    for mol_id, failure in sorted(result.failures.items()):
        print(f"failed: {mol_id}: {failure}", file=sys.stderr)
    return 1 if result.failures else 0


LABEL_OPTIONS = {
    "density_fit": "least_squares: small error of the kinetic energy; constrained: exact electrons and external energy",
    "beta": "ratio of neighbouring exponents of the density basis",
    "perturbations": "number of additional densities: of Fock matrices with random local potentials",
    "weakest_perturbation": "standard deviation of the last potential's coefficients [hartree]",
    "strongest_perturbation": "standard deviation of the first potential's coefficients [hartree]",
}
KOHN_SHAM_OPTIONS = {
    "xc": "exchange-correlation functional, LDA or GGA",
    "basis": "orbital basis; 6-31G(2df,p) has the elements H to Ar",
    "grid_level": "quadrature grid of PySCF, 0 to 9",
    "energy_tolerance": "SCF convergence: largest change of the energy [hartree]",
    "commutator_tolerance": "SCF convergence: largest norm of the orbital gradient [hartree]",
    "min_labelled": "smallest number of SCF iterations with labels",
    "max_iterations": "largest number of SCF iterations; a molecule without convergence fails",
    "damping": "share of the previous Fock matrix in the first iterations, 0 to 1",
}
CHECK_OPTIONS = {
    "electrons": "check: largest relative error of the number of electrons, |w.p - N| / N",
    "fit_residual": "check: largest Coulomb energy of the residual density [hartree per electron]",
    "kinetic_shift": "check: largest error of the kinetic energy, |T_of - T_KS| [hartree]",
    "finite_difference": "check: largest relative error of energy differences that gradients predict",
}


def _add_pack_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    parser.epilog = (
        "reads   label files (source)\n"
        "writes  a packed set (output), for ofdft-norm train data/source=packed data.source.paths=..."
    )
    sources = "label files, folders or patterns; the folder of a STRUCTURES25 data set; or embedded"
    add("source", nargs="+", help=sources)
    add("output", type=Path, help="folder of the packed set; an existing one is refused, except with verify")
    add("--basis-info", help="JSON file of the density basis, for label files")
    add("--labels", default="labels", help="name of the folder of label files in a STRUCTURES25 data set")
    add("--exclude", nargs="+", default=[], help="names of label files to leave out")
    add("--targets", nargs="+", default=["kin"], help="energies with gradients: kin (e_kin), kin_plus_xc, tot, ...")
    transforms = "applied before packing: none, or an option of data/pre_transforms: local_frames_natrep, ..."
    add("--pre-transforms", default="none", help=transforms)
    add("--dtype", default="float64", choices=["float64", "float32"], help="of coefficients and gradients")
    add("--energies", nargs="+", default=[], help="energies without gradients: xc, kin_tf, kin_vw, ...")
    add("--workers", type=int, default=0, help="additional processes that read and transform")
    add("--shard", metavar="K/N", help="pack one of N parts of the molecules, into the folder K-of-N in output")
    verify = "verify=100: compare checksums, and every 100th molecule with its label file; does not repack a set"
    add("--verify", nargs="?", type=int, const=100, metavar="K", help=verify)


def _pack(options: Namespace) -> int:
    import torch

    from ofdft_norm.data.pack import pack_labels, verify_packed
    from ofdft_norm.data.split import select_shard

    if options.verify is not None and options.verify < 1:
        raise ConfigError(f"verify = {options.verify}: expected K >= 1; every K-th molecule is compared")
    torch.set_num_threads(1)  # equal bits in every process
    source = _make_source(options)
    members = source.everything()
    if options.shard is not None:
        members = select_shard(members, options.shard)
        options.output /= options.shard.replace("/", "-of-")
        if not members:
            print(f"no molecule of {options.source} belongs to the shard {options.shard}")
            return 0
    dataset = source.open("all", members, ())
    targets = [target.removeprefix("grad_").removeprefix("e_") for target in options.targets]
    how = (targets, _make_pre_transforms(options.pre_transforms), options.dtype)
    if options.verify is None or not options.output.exists():
        pack_labels(dataset, options.output, *how, options.workers, energies=options.energies)
        print(f"{format_count(dataset.n_molecules, 'molecule')} in {options.output}")
    if options.verify is not None:
        n = verify_packed(dataset, options.output, *how, options.verify)
        print(f"{options.output}: all checksums agree; compared with label files: {format_count(n, 'molecule')}")
    return 0


def _make_source(options: Namespace) -> Any:
    from ofdft_norm.config import EmbeddedLabels, LabelFiles, Structures25Labels

    exclude, folder = options.exclude, Path(options.source[0]).expanduser().absolute()
    if options.source == ["embedded"]:
        return EmbeddedLabels(exclude=exclude)
    if options.basis_info is not None:
        return LabelFiles(options.source, options.basis_info, exclude=exclude)
    if not (folder / options.labels).is_dir():
        raise ConfigError(f"{options.source}: label files need the JSON file of their basis (config: basis_info)")
    root, name = str(folder.parent), folder.name
    return Structures25Labels(root=root, dataset=name, labels=options.labels, exclude=exclude)


def _make_pre_transforms(option: str) -> list[Callable[..., Any]]:
    folder = find_config_dir() / "data" / "pre_transforms"
    known = ["none", *sorted(path.stem for path in folder.glob("*.yaml"))]
    if option not in known:
        raise ConfigError(f"pre_transforms = {option!r}: expected one of {known}{did_you_mean(option, known)}")
    return [] if option == "none" else list(hydra.utils.instantiate(OmegaConf.load(folder / f"{option}.yaml")))


def _add_report_options(parser: ArgumentParser) -> None:
    parser.epilog = "reads   a run folder (run_dir), which ofdft-norm train writes\nwrites  one HTML page (output)"
    parser.add_argument("run_dir", type=Path, help="the run folder")
    parser.add_argument("--output", type=Path, help="the page; by default report.html in the run folder")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing page")


def _report(options: Namespace) -> int:
    from ofdft_norm.example.report import write_report

    page = write_report(options.run_dir, options.output or options.run_dir / "report.html", options.overwrite)
    print(f"report: {page}")
    return 0


OPTION_COMMANDS: dict[str, tuple[Callable[[ArgumentParser], None], Callable[[Namespace], int]]] = {
    "labels": (_add_labels_options, _run_labels),
    "pack": (_add_pack_options, _pack),
    "report": (_add_report_options, _report),
}

if __name__ == "__main__":
    sys.exit(main())
