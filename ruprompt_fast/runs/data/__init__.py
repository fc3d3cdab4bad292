"""Rows to train and evaluate on, from files of many kinds."""
