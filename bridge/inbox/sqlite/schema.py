"""
What stands in the file of a SQLite inbox, from the first format to that of today.

A user's rows in `users` and `heads` stay for ever, some 40 bytes and
twice the name. They could go when no
message is left only if a page that comes back were still told the truth: the user's
offsets would begin at 1 again, so positions from before would need another epoch, and that
would have to be the epoch of all who have no row, too, because nobody can know which of
them had one. Then the windows of users who never had a message, and these are most, would
not be recovered when they reconnect, and be told to reload for nothing.
"""

from typing import Final

# From format n to n + 1. Add to the end and never change what was released.
MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        "CREATE TABLE bridge (name TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID",
        # `first` is the oldest offset that may be kept: everything before it is gone.
        "CREATE TABLE users (id INTEGER PRIMARY KEY, user TEXT NOT NULL UNIQUE,"
        " first INTEGER NOT NULL DEFAULT 1, delivered INTEGER NOT NULL DEFAULT 0,"
        " trimmed_for TEXT)",
        # In the order of arrival: a commit writes to the end of the table alone.
        "CREATE TABLE messages (seq INTEGER PRIMARY KEY, user_id INTEGER NOT NULL,"
        " offset INTEGER NOT NULL, event TEXT NOT NULL, data BLOB NOT NULL,"
        " taken_s REAL NOT NULL, deadline_s REAL, message_id TEXT, seen_s REAL)",
        # Where a user's messages stand, and which ids a user has had. Both are behind
        # `messages` by what stands after `indexed_seq` (see sqlite_tail).
        "CREATE TABLE places (user_id INTEGER, offset INTEGER, seq INTEGER NOT NULL,"
        " PRIMARY KEY (user_id, offset)) WITHOUT ROWID",
        "CREATE TABLE seen (user_id INTEGER, message_id TEXT, seen_s REAL NOT NULL,"
        " PRIMARY KEY (user_id, message_id)) WITHOUT ROWID",
        # Messages that were in hand alone, so that one that kills the process is known.
        "CREATE TABLE trials (key BLOB PRIMARY KEY, count INTEGER NOT NULL,"
        " noted_s REAL NOT NULL) WITHOUT ROWID",
        "INSERT INTO bridge VALUES ('indexed_seq', 0)",
    ),
    (
        # Each message names the one before it of its user. What is long stands last: who
        # follows the chain need not read it.
        "ALTER TABLE messages RENAME TO format_1",
        "CREATE TABLE messages (seq INTEGER PRIMARY KEY, user_id INTEGER NOT NULL,"
        " offset INTEGER NOT NULL, prev INTEGER, taken_s REAL NOT NULL,"
        " deadline_s REAL, seen_s REAL, message_id TEXT, event TEXT NOT NULL,"
        " data BLOB NOT NULL)",
        "DELETE FROM format_1 WHERE offset < (SELECT first FROM users WHERE id = user_id)",
        "INSERT INTO messages SELECT seq, user_id, offset, lag(seq) OVER (PARTITION BY"
        " user_id ORDER BY offset), taken_s, deadline_s, seen_s, message_id, event, data"
        " FROM format_1",
        # The newest message ever of each user (its seq is 0 if that is gone), and up to
        # where it was delivered.
        "CREATE TABLE heads (user_id INTEGER PRIMARY KEY, last INTEGER NOT NULL,"
        " seq INTEGER NOT NULL, delivered INTEGER NOT NULL)",
        "INSERT INTO heads SELECT id, max(first - 1, coalesce(max(offset), 0)),"
        " coalesce(max(seq), 0), delivered FROM users LEFT JOIN messages"
        " ON user_id = id GROUP BY id",
        "ALTER TABLE users DROP COLUMN delivered",
        # One of 16 messages of a user.
        "DELETE FROM places",
        "INSERT INTO places SELECT user_id, offset, seq FROM messages"
        " WHERE offset % 16 = 0 ORDER BY user_id, offset",
        "INSERT OR REPLACE INTO seen SELECT user_id, message_id, seen_s FROM messages"
        " WHERE message_id IS NOT NULL ORDER BY seq",
        # Marks that `heads` does not have yet: pairs of user id and offset, as JSON.
        "CREATE TABLE marks (id INTEGER PRIMARY KEY, marks BLOB NOT NULL)",
        "UPDATE bridge SET value = (SELECT coalesce(max(seq), 0) FROM messages)"
        " WHERE name = 'indexed_seq'",
        "DROP TABLE format_1",
    ),
)
