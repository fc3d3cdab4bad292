"""The operators on the CPU: the only callers of the compiled extension and of oneDNN's prepacked products."""
