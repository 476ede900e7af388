"""Writes a report of a run: ``python scripts/report.py run_dir=outputs/...``, or ``ofdft-norm report ...``."""

import sys

from ofdft_norm.commands.report import main

if __name__ == "__main__":
    sys.exit(main())
