"""Work before and after a job: forecasts, the cache, fetching ahead of time, configs of the user's own."""
