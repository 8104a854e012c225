"""`bridge inbox migrate`: copy all inboxes from one store into another."""
