"""Writes a quantized student as C for devices without onnxruntime."""
