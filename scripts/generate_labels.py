"""Makes training labels: ``python scripts/generate_labels.py molecules.xyz ...``, or ``ofdft-norm labels ...``."""

import sys

from ofdft_norm.commands.generate_labels import main

if __name__ == "__main__":
    sys.exit(main())
