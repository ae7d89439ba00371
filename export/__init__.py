"""From a trained student to what is shipped: ONNX export, INT8 quantization, the bundle and its checks."""
