"""The dead-letter queue: browse, redrive and discard."""
