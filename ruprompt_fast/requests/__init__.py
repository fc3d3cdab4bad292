"""Turns a call's arguments into requests with prompts and settings, and tokens into text."""
