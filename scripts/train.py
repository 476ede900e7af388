"""Trains the worked example: ``python scripts/train.py data=ofdft_norm``; see ``configs/train.yaml``."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from ofdft_norm.config.readable_errors import readable_errors


@readable_errors
@hydra.main(version_base="1.3", config_path="../configs", config_name="train")
def main(cfg: DictConfig) -> None:
    """Runs one training."""
    from ofdft_norm.example.training import train  # not before the configuration is composed: it takes seconds

    train(cfg)


if __name__ == "__main__":
    main()
