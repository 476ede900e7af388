"""Trains the worked example: ``python scripts/train.py data=ofdft_norm``, or ``ofdft-norm train ...``."""

from ofdft_norm.commands.train import main

if __name__ == "__main__":
    main()
