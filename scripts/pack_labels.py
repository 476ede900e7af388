"""Packs label files: ``python scripts/pack_labels.py ...``, or ``ofdft-norm pack ...``."""

import sys

from ofdft_norm.cli import main

if __name__ == "__main__":
    sys.exit(main(["pack", *sys.argv[1:]]))
