"""INT8 quantization after training: search for a format, repair steps, check for integer kernels."""
