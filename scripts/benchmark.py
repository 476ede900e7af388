"""Measures the package on this machine: ``python scripts/benchmark.py fit``, or ``ofdft-norm benchmark fit``."""

import sys

from ofdft_norm.commands.benchmark import main

if __name__ == "__main__":
    sys.exit(main())
