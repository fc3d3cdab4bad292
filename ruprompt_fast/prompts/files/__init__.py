"""Prompts on disk and on the hub."""
