"""Inboxes in Redis or Valkey. The only package that imports hiredis."""
