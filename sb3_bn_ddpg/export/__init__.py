"""Policies for other programs: safetensors and ONNX."""
