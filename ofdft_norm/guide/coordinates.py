"""From raw coordinates to the network's, and back.

.. include:: coordinates.md
"""
