"""Writes the report of a run: ``python scripts/report.py ...``, or ``ofdft-norm report ...``."""

import sys

from ofdft_norm.cli import main

if __name__ == "__main__":
    sys.exit(main(["report", *sys.argv[1:]]))
