"""Makes training labels from geometries with Kohn-Sham DFT.

Example:
    ofdft-norm labels molecules.xyz --output my_labels --workers 8
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ofdft_norm.errors import OFDFTNormError, counted
from ofdft_norm.labelling import CheckTolerances, KohnShamSettings, LabelSettings, generate, read_geometries
from ofdft_norm.labelling.checks import report_table
from ofdft_norm.labelling.density_fit import FIT_METHODS
from ofdft_norm.labelling.labels import DEFAULT_TARGETS, TARGETS


def build_parser() -> argparse.ArgumentParser:
    """Returns the command line's parser; defaults are those of the settings classes."""
    kohn_sham, labels, limits = KohnShamSettings(), LabelSettings(), CheckTolerances()
    parser = argparse.ArgumentParser(
        description="Makes energies and gradients of expanded densities along Kohn-Sham iterations, one "
        "label file for each molecule. Interrupted runs continue; molecules of other files are added to those that the "
        "output has, if all settings are the same. Exits with 1 if a molecule fails its checks.",
        epilog="Molecules are neutral and closed-shell. Elements: all of which PySCF has the orbital basis with all "
        "electrons, H to Ar with 6-31G(2df,p); the density basis follows from the orbital basis. Heavier ones need "
        "another --basis. A data set has one basis: all its labels are made with equal --basis and --beta.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("xyz", nargs="+", type=Path, help="XYZ or other files that ASE reads, angstrom")
    parser.add_argument("--output", required=True, type=Path, help="folder of the label set")
    parser.add_argument("--workers", type=int, default=1, help="processes, one thread each")
    parser.add_argument(
        "--shard",
        metavar="K/N",
        default="1/1",
        help="make every N-th molecule from the K-th on, label files only: for one of N jobs that share the output "
        "folder; a last run over all writes the basis, provenance and checksums",
    )
    parser.add_argument(
        "--targets", nargs="+", default=list(DEFAULT_TARGETS), choices=sorted(TARGETS), help="gradients"
    )
    parser.add_argument(
        "--natural-reparametrization",
        action=argparse.BooleanOptionalAction,
        default=labels.natural_reparametrization,
        help="store coefficients and gradients in coordinates in which the basis is orthonormal",
    )
    physics = parser.add_argument_group("Kohn-Sham")
    physics.add_argument("--xc", default=kohn_sham.xc, help="LDA or GGA functional")
    physics.add_argument("--basis", default=kohn_sham.basis, help="orbital basis")
    physics.add_argument("--beta", type=float, default=labels.beta, help="ratio of exponents of the density basis")
    physics.add_argument(
        "--density-fit",
        default=labels.density_fit,
        choices=FIT_METHODS,
        help="constrained: electrons and external energy exact, kinetic label shifted; least_squares: kinetic label "
        "near the Kohn-Sham kinetic energy, electrons and gradients less exact",
    )
    physics.add_argument("--grid-level", type=int, default=kohn_sham.grid_level, help="quadrature grid, 0 to 9")
    physics.add_argument("--energy-tolerance", type=float, default=kohn_sham.energy_tolerance, help="hartree")
    physics.add_argument("--commutator-tolerance", type=float, default=kohn_sham.commutator_tolerance, help="hartree")
    physics.add_argument("--max-iterations", type=int, default=kohn_sham.max_iterations, help="more is a failure")
    physics.add_argument("--damping", type=float, default=kohn_sham.damping, help="of the first iterations, 0 to 1")
    checks = parser.add_argument_group("checks (molecules beyond these are refused)")
    checks.add_argument("--min-labelled", type=int, default=limits.min_labelled, help="fewest labelled iterations")
    least_squares = CheckTolerances.of("least_squares")
    checks.add_argument(
        "--electrons",
        type=float,
        default=argparse.SUPPRESS,
        help=f"largest |w.p - N| (default: {limits.electrons:g}; least_squares: {least_squares.electrons:g})",
    )
    checks.add_argument("--fit-residual", type=float, default=limits.fit_residual, help="hartree per electron")
    checks.add_argument(
        "--kinetic-shift", type=float, default=limits.kinetic_shift, help="largest |T_of - T_KS|, hartree"
    )
    checks.add_argument("--finite-difference", type=float, default=limits.finite_difference, help="relative")
    checks.add_argument(
        "--finite-difference-floor",
        nargs="+",
        type=_floor,
        metavar="TARGET=HARTREE",
        default=argparse.SUPPRESS,
        help="errors of energy changes that are accepted however small the change (default: "
        f"{_shown(limits)}; least_squares: {_shown(least_squares)})",
    )
    return parser


def _floor(text: str) -> tuple[str, float]:
    target, _, value = text.partition("=")
    return target, float(value)


def _shown(limits: CheckTolerances) -> str:
    return " ".join(f"{target}={value:g}" for target, value in limits.finite_difference_floor.items())


def _tolerances(options: argparse.Namespace) -> CheckTolerances:
    """Returns the defaults of the density fit, with what was given."""
    names = ("electrons", "fit_residual", "kinetic_shift", "finite_difference", "min_labelled")
    given = {name: getattr(options, name) for name in names if hasattr(options, name)}
    defaults = CheckTolerances.of(options.density_fit)
    floors = {**defaults.finite_difference_floor, **dict(getattr(options, "finite_difference_floor", []))}
    return replace(defaults, **given, finite_difference_floor=floors)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code.

    Args:
        arguments: Words of the command line after the command's name; None: those of the process.
    """
    options = build_parser().parse_args(arguments)
    kohn_sham = KohnShamSettings(
        xc=options.xc,
        basis=options.basis,
        grid_level=options.grid_level,
        energy_tolerance=options.energy_tolerance,
        commutator_tolerance=options.commutator_tolerance,
        min_labelled=options.min_labelled,
        max_iterations=options.max_iterations,
        damping=options.damping,
    )
    try:
        settings = LabelSettings(
            kohn_sham=kohn_sham,
            beta=options.beta,
            density_fit=options.density_fit,
            natural_reparametrization=options.natural_reparametrization,
            targets=tuple(options.targets),
        )
        result = generate(
            read_geometries(options.xyz),
            options.output,
            settings=settings,
            tolerances=_tolerances(options),
            workers=options.workers,
            shard=options.shard,
            geometry_files=options.xyz,
            command=shlex.join(["ofdft-norm", "labels", *(arguments or sys.argv[1:])]),
        )
    except (OFDFTNormError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    there, already = counted(len(result.reports), "molecule"), len(result.skipped)
    print(f"{there} in {options.output} ({already} {'was' if already == 1 else 'were'} there already)")
    made = [report for mol_id, report in result.reports.items() if mol_id not in result.skipped]
    if made:
        print(report_table(made))
    for mol_id, failure in sorted(result.failures.items()):
        print(f"failed: {mol_id}: {failure}", file=sys.stderr)
    return 1 if result.failures else 0
