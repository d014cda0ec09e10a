"""Tables, as pure functions of finished cells and published scores; the only place that rounds."""
