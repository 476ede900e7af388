"""Writes a report as one HTML page: ``python scripts/report.py run_dir=outputs/... | statistics=...zarr``.

Keys: ``run_dir``, the folder of a training run; or ``statistics``, fitted statistics, and ``weigher_key``; ``output``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ofdft_norm.errors import OFDFTNormError
from ofdft_norm.report.report import ReportConfig, make_report


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit code."""
    try:
        given = OmegaConf.from_dotlist(list(sys.argv[1:] if arguments is None else arguments))
        print(f"report: {make_report(ReportConfig(**{str(key): value for key, value in given.items()}))}")
    except (OFDFTNormError, OmegaConfBaseException) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
