"""Publishing with confirms: messages, retries and dead letters."""
