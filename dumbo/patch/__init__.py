"""Group `patch`: what is done to a loaded model before it trains."""
