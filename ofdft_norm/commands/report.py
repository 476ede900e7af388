"""Writes a report as one HTML page: ofdft-norm report run_dir=outputs/... | statistics=...zarr.

Keys: run_dir, the folder of a training run; or statistics, fitted statistics, and weigher_key; output.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ofdft_norm.errors import OFDFTNormError
from ofdft_norm.report.report import ReportConfig, make_report


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code.

    Args:
        arguments: Words of the command line after the command's name; None: those of the process.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="key=value", help="what to report on")
    try:
        given = OmegaConf.from_dotlist(parser.parse_args(arguments).settings)
        print(f"report: {make_report(ReportConfig(**{str(key): value for key, value in given.items()}))}")
    except (OFDFTNormError, OmegaConfBaseException) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
