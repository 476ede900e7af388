"""Makes labels: ``python scripts/generate_labels.py ...``, or ``ofdft-norm labels ...``."""

import sys

from ofdft_norm.cli import main

if __name__ == "__main__":
    sys.exit(main(["labels", *sys.argv[1:]]))
