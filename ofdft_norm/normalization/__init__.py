"""References, rescaling, and the normaliser that composes and inverts them."""
