"""What normalisation did to your data.

.. include:: what_normalisation_did.md
"""
