"""
The Lua scripts: what Redis does in one step. A connection loads them and calls them by hash.

The keys of a user; each begins with a prefix that ends in the hash tag of the user:

    h            a hash: user -> last offset, delivered mark, why older messages are gone,
                 and, unless it is 0, the offset after which those of this user start. For
                 a sparse inbox, then the newest offset in the list, and the newest offset
                 that was deleted from the sorted set for another reason than its key;
                 and under the empty name the epoch, so it is lost together with them.
                 Fields that begin with a control character belong to no user:
                 - the replication id of the server that the data are from
                 - the fences: for each queue the largest token that messages were stored
                   under. A single server has all fences in the first tag; in a cluster
                   each tag has its own.
                 - the claims: for each queue the token given out last, in the first tag
                 - events: the number of the last event
                 - presence: the last `seq` of an event about presence
                 - skipped: how many of `d` seemed due to the last poll, which has not looked at all
                 - lost: when the tag was found without its hash, which it had before
                 - forgotten: the offset after which those of new users start; see
                   inbox/sqlite/schema.py
    u            a sorted set of the users, all with score 0: the index for operators
    m:USER       a list of the kept messages, oldest first
    s:USER       a sorted set: the places of the messages since the first one with a key, by
                 offset. A place is the key, or for a message without one its offset
    k:USER       a hash: place -> element of these messages
    v:USER       a sorted set: the places whose newest message is retained, by its offset. Its
                 element stays in k:USER when the place is deleted from s:USER
    i:USER       a sorted set of the message ids of the user, by time
    b:SESSION    the last batch of a bridge, and its result
    t:KEY        a trial: a count
    w:USER       a sorted set of the receipts whose outcome is open, by offset
    o0:USER      a hash: message id -> outcome, for duplicates; o1 and o2 take turns with it. They
                 have a time to live, because a loss costs only the event for a duplicate
    d            a sorted set: "OFFSET USER" (16 digits) of each tracked message whose outcome is
                 open, by the time of the next decision that time alone leads to (may be infinite)
    e            a sorted set: the event outbox, numbered
    x            the session of the bridge that publishes the events of the tag, for seconds
    a            a sorted set: the sessions of bridges, by the server's time up to which each has
                 written what it knows. A single server has it in the first tag; in a cluster
                 each tag has its own.
    f            a sorted set: the numbers of the events in `e` that are about presence
    p            a hash of the users who have windows -> the sessions that have them
                 (presence.py). These keys up to `y`, and `f`, have a time to live, because
                 nothing else deletes them when presence is turned off.
    p:SESSION    a sorted set of the users who have windows in a session, all with score 0
    l            a sorted set of the sessions, all with score 0
    l:SESSION    the number of the last call of a session; ends with its lease
    q            a sorted set of the users who have left, by the `seq` at that time
    q:SEQ        exists until these users are offline
    y            exists while the tag is polled for presence
    r            a sorted set of the revocations of users of the tag as JSON, all with score 0

Offsets in the list have no gaps, so the position determines the offset: the last element
has the last offset, or in a sparse inbox the offset in the head. In s:USER a message with a
key replaces the one before it, which leaves a hole.

Reads never write, so they work on a server without free memory. They skip messages beyond
the limit or the age, which the next append or sweep removes. Messages and ids have no time to
live, because the server would delete them if its clock jumped ahead.

`now`, `steady` and `lowest` are a reading of the bridge's clock; the oldest times are computed
from it (core/clock_reading.py).
"""
