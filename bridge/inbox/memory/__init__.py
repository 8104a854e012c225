"""The store of inboxes in the memory of the process."""
