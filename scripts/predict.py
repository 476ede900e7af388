"""Predicts with a checkpoint: ``python scripts/predict.py ...``, or ``ofdft-norm predict ...``."""

import sys

from ofdft_norm.cli import main

if __name__ == "__main__":
    main(["predict", *sys.argv[1:]])
