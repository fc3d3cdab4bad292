"""Providers: modules that make a prompt's rows."""
