"""Inboxes in the memory of the process."""
