"""Whole runs: training, evaluating, generating and sweeping from one configuration to a folder of results."""
