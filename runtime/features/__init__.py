"""Feature pipelines on Ray Data, and the catalogue of what they wrote."""
