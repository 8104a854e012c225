"""
The tables of a SQLite inbox, and the steps from each format to the next.

A user without messages, ids and windows is forgotten: its rows are deleted. Positions from
before must not fit the offsets that it gets later, and nothing tells which users without
rows had some before. So the offsets of every new user start above all that were forgotten
(`forgotten` in the table `bridge`), and lower positions count as those of another store.
That number grows in steps of 1,024, seldom more than once in BRIDGE_INBOX_MAX_AGE. When it
does, windows of users who never had a message are asked to reload when they reconnect.
"""

from typing import Final

# The steps from format n to n + 1. Append only: released steps never change.
MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        "CREATE TABLE bridge (name TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID",
        # `first` is the oldest offset that may be kept: lower ones were deleted.
        "CREATE TABLE users (id INTEGER PRIMARY KEY, user TEXT NOT NULL UNIQUE,"
        " first INTEGER NOT NULL DEFAULT 1, delivered INTEGER NOT NULL DEFAULT 0,"
        " trimmed_for TEXT)",
        # In the order of arrival: a commit writes only to the end of the table.
        "CREATE TABLE messages (seq INTEGER PRIMARY KEY, user_id INTEGER NOT NULL,"
        " offset INTEGER NOT NULL, event TEXT NOT NULL, data BLOB NOT NULL,"
        " taken_s REAL NOT NULL, deadline_s REAL, message_id TEXT, seen_s REAL)",
        # Where a user's messages are, and which ids a user has received. Both lack the
        # messages above `indexed_seq` (see unindexed.py).
        "CREATE TABLE places (user_id INTEGER, offset INTEGER, seq INTEGER NOT NULL,"
        " PRIMARY KEY (user_id, offset)) WITHOUT ROWID",
        "CREATE TABLE seen (user_id INTEGER, message_id TEXT, seen_s REAL NOT NULL,"
        " PRIMARY KEY (user_id, message_id)) WITHOUT ROWID",
        # Messages that are processed alone, so that one that crashes the process is found.
        "CREATE TABLE trials (key BLOB PRIMARY KEY, count INTEGER NOT NULL,"
        " noted_s REAL NOT NULL) WITHOUT ROWID",
        "INSERT INTO bridge VALUES ('indexed_seq', 0)",
    ),
    (
        # Each message names the previous one of its user. Long columns are last, so
        # following the chain does not read them.
        "ALTER TABLE messages RENAME TO format_1",
        "CREATE TABLE messages (seq INTEGER PRIMARY KEY, user_id INTEGER NOT NULL,"
        " offset INTEGER NOT NULL, prev INTEGER, taken_s REAL NOT NULL,"
        " deadline_s REAL, seen_s REAL, message_id TEXT, event TEXT NOT NULL,"
        " data BLOB NOT NULL)",
        "DELETE FROM format_1 WHERE offset < (SELECT first FROM users WHERE id = user_id)",
        "INSERT INTO messages SELECT seq, user_id, offset, lag(seq) OVER (PARTITION BY"
        " user_id ORDER BY offset), taken_s, deadline_s, seen_s, message_id, event, data"
        " FROM format_1",
        # The newest message ever of each user (its seq is 0 if it was deleted), and the
        # delivered mark.
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
        # Marks that `heads` does not hold yet: pairs of user id and offset, as JSON.
        "CREATE TABLE marks (id INTEGER PRIMARY KEY, marks BLOB NOT NULL)",
        "UPDATE bridge SET value = (SELECT coalesce(max(seq), 0) FROM messages)"
        " WHERE name = 'indexed_seq'",
        "DROP TABLE format_1",
    ),
    (
        "ALTER TABLE users ADD COLUMN forgotten INTEGER NOT NULL DEFAULT 0",
        "INSERT INTO bridge VALUES ('forgotten', 0)",
    ),
    (
        # Set when a user receives the first message with a key: from then on the user's
        # messages are in the table `sparse`. `gone` is the newest offset that was deleted
        # from it, but not replaced.
        "ALTER TABLE users ADD COLUMN sparse_after INTEGER",
        "ALTER TABLE users ADD COLUMN gone INTEGER NOT NULL DEFAULT 0",
        "CREATE INDEX sparse_users ON users (id) WHERE sparse_after IS NOT NULL",
        "CREATE TABLE sparse (user_id INTEGER, offset INTEGER, taken_s REAL NOT NULL,"
        " deadline_s REAL, message_id TEXT, key TEXT, event TEXT NOT NULL,"
        " data BLOB NOT NULL, PRIMARY KEY (user_id, offset)) WITHOUT ROWID",
        # An insert replaces the message with the same key because of this index.
        "CREATE UNIQUE INDEX keys ON sparse (user_id, event, key) WHERE key IS NOT NULL",
        # What `heads` and `seen` lack of these messages, as JSON.
        "ALTER TABLE marks ADD COLUMN sparse BLOB",
    ),
    # Each as JSON (core/revocation.py).
    ("CREATE TABLE revocations (revocation BLOB PRIMARY KEY) WITHOUT ROWID",),
    (
        # The message of a retained key stays in `sparse` when it is deleted from the inbox:
        # its offset is then not above `users.gone`.
        "CREATE TABLE retained (user_id INTEGER, event TEXT, key TEXT,"
        " PRIMARY KEY (user_id, event, key)) WITHOUT ROWID",
    ),
    (
        # Of tracked messages whose outcome is open (receipts.py), in the order of arrival.
        "CREATE TABLE receipts (id INTEGER PRIMARY KEY, user_id INTEGER NOT NULL,"
        " offset INTEGER NOT NULL, due_s REAL, receipt BLOB NOT NULL)",
        "CREATE INDEX due ON receipts (due_s) WHERE due_s IS NOT NULL",
        # To be published. One that says the outcome of a message with an id stays for a
        # while after that, for duplicates of `message`.
        "CREATE TABLE events (id INTEGER PRIMARY KEY, at_s REAL NOT NULL,"
        " is_confirmed INTEGER NOT NULL, message TEXT, event BLOB NOT NULL)",
        "CREATE INDEX pending ON events (id) WHERE is_confirmed = 0",
        "CREATE INDEX concluded ON events (message) WHERE message IS NOT NULL",
    ),
    # The users that were reported online and not yet offline.
    ("CREATE TABLE presence (user TEXT PRIMARY KEY) WITHOUT ROWID",),
)
