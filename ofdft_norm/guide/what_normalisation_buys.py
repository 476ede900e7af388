"""What normalisation buys: an ablation with equal tuning.

.. include:: what_normalisation_buys.md
"""
