"""Running requests of many prompts over one frozen model."""
