"""Trains the worked example, or another model: ``python scripts/train.py ...``, or ``ofdft-norm train ...``."""

import sys

from ofdft_norm.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
