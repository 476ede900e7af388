"""What Hydra needs: the search path of config files, functions that config files call, and readable errors."""
