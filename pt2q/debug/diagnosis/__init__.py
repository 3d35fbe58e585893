"""Why accuracy is lost: causes with their evidence, each with a way out that was tried."""
