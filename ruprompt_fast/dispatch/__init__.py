"""A served model: which way its requests take, and what belongs to it."""
