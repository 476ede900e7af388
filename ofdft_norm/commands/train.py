"""Trains the worked example: ``ofdft-norm train data=ofdft_norm``; see ``configs/train.yaml``."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from ofdft_norm.config.readable_errors import config_dir, readable_errors


@readable_errors
@hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="train")
def main(cfg: DictConfig) -> None:
    """Runs one training.

    Args:
        cfg: The composed configuration; ``train.yaml`` says what it has.
    """
    from ofdft_norm.example.training import train  # not before the configuration is composed: it takes seconds

    train(cfg)


if __name__ == "__main__":
    main()
