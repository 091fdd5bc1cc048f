"""Questions about a step, each answered by one small subclass of :class:`graph.analysis.Analysis`."""
