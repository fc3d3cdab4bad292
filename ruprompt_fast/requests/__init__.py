"""From a call's arguments to requests, with their prompts and settings; from tokens to text."""
