"""Models: loading pipelines, adapters, and the committed small model."""
