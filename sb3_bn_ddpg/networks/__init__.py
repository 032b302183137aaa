"""Normalisation, layers, actors, critics, policies."""
