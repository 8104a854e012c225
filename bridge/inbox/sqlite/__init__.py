"""Inboxes in one SQLite file. The only package that imports sqlite3."""
