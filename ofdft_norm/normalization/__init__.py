"""What a number becomes: references, rescaling, and the normaliser that composes and inverts them."""
