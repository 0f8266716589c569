"""The HTTP edge: Ray's Jobs REST API and Moorage's own routes. Never imports Ray."""
