"""Layers and what stands around them in a network: encodings, losses, penalties, models."""
