"""How tokens are chosen, in NumPy on the host: processors, filters, noise, beam search."""
