"""From a trained student to a shipped bundle: ONNX export, INT8 quantization, bundle and its checks."""
