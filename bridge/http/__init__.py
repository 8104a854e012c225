"""HTTP doors: the public port, the operator port, the demo page."""
