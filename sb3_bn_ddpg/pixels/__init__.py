"""Environments and replay buffers for images."""
