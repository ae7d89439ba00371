"""Is the INT8 model good enough, how fast is it here, and can the numbers be trusted? Imports no torch.

`stage.run_benchmark` puts everything together; the other modules each answer one question and work alone:
`gate` (accuracy loss), `accuracy`, `latency`, `proof` (integer kernels), `host`, `report`, `figures`.
"""
