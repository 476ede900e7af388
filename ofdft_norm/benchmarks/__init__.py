"""What ``ofdft-norm benchmark`` measures."""
