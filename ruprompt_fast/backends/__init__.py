"""What runs a step: one backend for each kind of device."""
