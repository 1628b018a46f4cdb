"""Group `tracker`: copies of the numbers for services and viewers."""
