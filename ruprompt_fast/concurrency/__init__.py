"""Threads of our own, and the lock that they share."""
