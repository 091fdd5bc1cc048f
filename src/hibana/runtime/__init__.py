"""Building, caching and running native code on torch's threads; importing it does not load torch."""
