"""
bridge carries messages from RabbitMQ to browsers, with nothing lost in between.

The map of the house, floor by floor; imports only point down:

    names            words and closed lists: events, headers, reasons, codes
    errors           the tree of errors
    core             pure decisions: what a delivery means, where a replay starts, frames
    settings         what an operator can set     logs · metrics · tracing  what one sees
    broker           RabbitMQ, the only room that knows aio_pika
    inbox            the log of each user's messages
    sockets          windows: engine.io and socket.io, over websockets and polling
    auth             tokens and keys
    schema_folder    the files that say what the data of events may be
    fencing          keeps a bridge out that stores after it has lost a queue
    pump             deliveries -> inbox -> settlement: the heart, read it first
    web              HTTP doors: public and operator's with its API, the demo page
    options          what each room is told of the settings
    operators        what operators see and may do, gathered from the rooms
    app              the one place where concrete classes meet: start, drain, reload
    signals          SIGTERM drains, SIGHUP reloads
    doctor           checks everything that a start needs, and suggests fixes
    cli              commands
"""

__version__ = "0.1.0"
