"""Packs label files into a few large arrays, which training reads thirty times faster.

Examples:
    ofdft-norm pack labels/ packed --basis-info basis_info.json
    ofdft-norm pack $DFT_DATA/QM9 packed --targets kin tot --workers 16
    ofdft-norm pack embedded packed --pre-transforms local_frames_natrep --verify
Then: ofdft-norm train data/source=packed data.source.paths=packed data/pre_transforms=local_frames_natrep
"""

from __future__ import annotations

import argparse
import glob
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch_geometric.transforms import BaseTransform

import ofdft_norm
from ofdft_norm.config import EmbeddedLabels, LabelFiles, Structures25Labels
from ofdft_norm.config.readable_errors import config_dir
from ofdft_norm.data.packed_writer import PackingPlan, pack_labels, verify_packed
from ofdft_norm.errors import ConfigError, OFDFTNormError, counted

CONFIGS = config_dir() / "data" / "pre_transforms"


def build_parser() -> argparse.ArgumentParser:
    """Returns the command line's parser."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "source",
        nargs="+",
        help="folders of label files, patterns or files; or a data set's folder as STRUCTURES25 lays it out (label "
        "files in labels/, basis_info.json or dataset_info.yaml beside them); or the word 'embedded'",
    )
    parser.add_argument("output", type=Path, help="folder of the packed set; must not exist, unless only to --verify")
    parser.add_argument("--basis-info", help="JSON file with the density basis, for label files")
    parser.add_argument("--labels", default="labels", help="name of the folder of label files in a data set's folder")
    parser.add_argument("--exclude", nargs="+", default=[], help="names of label files to leave out")
    parser.add_argument("--targets", nargs="+", default=["kin"], help="kin (e_kin, grad_kin), kin_plus_xc, tot, ...")
    parser.add_argument(
        "--pre-transforms",
        nargs="+",
        default=[],
        help="applied before packing: an option of data/pre_transforms, such as local_frames_natrep; or names of "
        "ofdft_norm's, with settings as in 'NaturalReparametrization(orthogonalization=canonical)'; "
        "data.pre_transforms must then begin with these",
    )
    parser.add_argument("--dtype", default="float64", choices=["float64", "float32"], help="of coefficients, gradients")
    parser.add_argument("--workers", type=int, default=0, help="processes that read and transform beside this one")
    parser.add_argument(
        "--verify",
        nargs="?",
        type=int,
        const=100,
        metavar="K",
        help="compare all digests, and every K-th sample bit for bit with its label file (100); a set that is there "
        "already is only verified",
    )
    return parser


def label_source(options: argparse.Namespace) -> LabelFiles:
    """Returns the source that the command line names.

    Args:
        options: The parsed command line.

    Raises:
        ConfigError: If label files come without a density basis, or are not there.
    """
    sources: list[str] = options.source
    if sources == ["embedded"]:
        return EmbeddedLabels(exclude=options.exclude)
    if len(sources) == 1 and options.basis_info is None and (Path(sources[0]) / options.labels).is_dir():
        folder = Path(sources[0]).expanduser().absolute()
        return Structures25Labels(
            root=str(folder.parent), dataset=folder.name, labels=options.labels, exclude=options.exclude
        )
    if options.basis_info is None:
        missing = [source for source in sources if not glob.glob(os.path.expanduser(source))]
        if missing:
            raise ConfigError(f"{missing[0]}: no such folder or file")
        raise ConfigError(f"{sources}: label files need the density basis: give it as JSON (option --basis-info)")
    return LabelFiles(sources, options.basis_info, exclude=options.exclude)


def pre_transforms(texts: Sequence[str]) -> list[Callable[[Any], Any]]:
    """Makes the transforms of an option of ``configs/data/pre_transforms``, or of names.

    Args:
        texts: Names with settings, such as ``NaturalReparametrization(mode=symmetric)``, or the name of one option.
    """
    option = CONFIGS / f"{texts[0]}.yaml" if len(texts) == 1 else None
    if option is not None and option.is_file():
        return list(instantiate(OmegaConf.load(option)))
    return [pre_transform(text) for text in texts]


def pre_transform(text: str) -> Callable[[Any], Any]:
    """Makes a transform from its name and settings.

    Args:
        text: ``Name`` or ``Name(setting=value, ...)``; values are YAML.

    Raises:
        ConfigError: If the package has no transform of that name.
    """
    match = re.fullmatch(r"(\w+)(?:\((.*)\))?", text)
    found = getattr(ofdft_norm, match[1], None) if match else None
    if match is None or not (isinstance(found, type) and issubclass(found, BaseTransform)):
        raise ConfigError(f"{text!r}: ofdft_norm has no such pre-transform (option --pre-transforms)")
    settings = dict(setting.split("=", 1) for setting in (match[2] or "").split(",") if setting)
    return found(**{name.strip(): yaml.safe_load(value) for name, value in settings.items()})


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code.

    Args:
        arguments: Words of the command line after the command's name; None: those of the process.
    """
    options = build_parser().parse_args(arguments)
    torch.set_num_threads(1)  # the same bits in every process, whatever their number
    try:
        source = label_source(options)
        plan = PackingPlan(
            source.label_files(),
            source.basis(),
            [target.removeprefix("grad_").removeprefix("e_") for target in options.targets],
            pre_transforms(options.pre_transforms),
            options.dtype,
        )
        if options.verify is None or not options.output.exists():
            command = shlex.join(["ofdft-norm", "pack", *(arguments or sys.argv[1:])])
            pack_labels(plan, options.output, options.workers, command=command)
            print(f"{counted(len(plan.paths), 'molecule')} in {options.output}")
        if options.verify is not None:
            n = verify_packed(plan, options.output, options.verify)
            print(f"{options.output}: all digests and {counted(n, 'sample')} of each target are as in the label files")
    except (OFDFTNormError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
