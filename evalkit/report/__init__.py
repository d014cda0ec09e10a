"""Tables, exports and the page: pure functions of finished cells and published scores. Only this room rounds."""
