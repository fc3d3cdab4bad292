"""The transformers fallback: padded batches on transformers' own generate."""
