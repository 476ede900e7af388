"""Predicts with a checkpoint: ``python scripts/predict.py ckpt_path=run.ckpt ...``, or ``ofdft-norm predict ...``."""

from ofdft_norm.commands.predict import main

if __name__ == "__main__":
    main()
