"""Building, caching and running native code on torch's threads; importing it loads nothing, not even torch."""
