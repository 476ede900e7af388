"""What normalisation buys: an ablation on the embedded labels, and on yours.

.. include:: ablation.md
"""
