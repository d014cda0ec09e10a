"""Work around a run: forecasts, the cache, fetching ahead of time."""
