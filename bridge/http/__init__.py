"""HTTP: the public port, the operator port with its API, and the console."""
