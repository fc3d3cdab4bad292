"""The stages of ``make gpu-check``: what the package does on a CUDA card, measured in a few minutes."""
