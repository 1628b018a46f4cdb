"""Group `launch`: in how many processes a job runs."""
