"""The store of inboxes in one SQLite file. The only package that imports sqlite3."""
