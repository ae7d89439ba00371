"""INT8 quantization after training: the search for a format, repair steps, proof of integer layers."""
