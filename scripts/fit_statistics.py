"""Fits dataset statistics: ``python scripts/fit_statistics.py ...``, or ``ofdft-norm fit ...``."""

import sys

from ofdft_norm.cli import main

if __name__ == "__main__":
    main(["fit", *sys.argv[1:]])
