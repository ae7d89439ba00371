"""Accuracy, latency, memory and stability of an FP32 and an INT8 model on this host. Imports no torch.

`measure.run_benchmark` combines the other modules. Each of them also works on its own: `gate` (accuracy loss),
`accuracy`, `latency`, `stability`, `memory`, `providers` (integer kernels), `host`, `report`, `emulate`.
"""
