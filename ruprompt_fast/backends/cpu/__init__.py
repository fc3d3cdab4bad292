"""The CPU: packed layers, paged attention, and a sampler in NumPy."""
