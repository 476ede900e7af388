"""Compares normalisations: ``python scripts/ablation.py --output ablation``, or ``ofdft-norm ablation ...``."""

import sys

from ofdft_norm.commands.ablation import main

if __name__ == "__main__":
    sys.exit(main())
