"""Token batches and activation streams."""
