"""Formats: from fields and texts to ids."""
