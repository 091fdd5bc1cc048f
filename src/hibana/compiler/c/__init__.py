"""Plain C99: a step as statements, for what leaves Python. It runs nothing, and is no backend."""
