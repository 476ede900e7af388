"""Fits dataset statistics: ``python scripts/fit_statistics.py data=ofdft_norm``, or ``ofdft-norm fit ...``."""

from ofdft_norm.commands.fit_statistics import main

if __name__ == "__main__":
    main()
