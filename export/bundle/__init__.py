"""The bundle: one folder with everything a device needs; building, verifying and predicting with it."""
