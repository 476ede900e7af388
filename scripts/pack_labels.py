"""Packs label files: ``python scripts/pack_labels.py labels/ packed ...``, or ``ofdft-norm pack ...``."""

import sys

from ofdft_norm.commands.pack_labels import main

if __name__ == "__main__":
    sys.exit(main())
