"""The bundle: what a device needs in one folder, how it is verified, and how it predicts."""
