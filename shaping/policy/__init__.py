"""Shaping policies: files that say how lines between NICs behave, what they mean, and the elements
that make it so. Nothing here runs packets."""
