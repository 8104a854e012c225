"""
bridge delivers messages from RabbitMQ to browsers, and loses none of them.

The packages and modules, from the lowest layer to the highest. Imports only point down;
tests/unit/test_architecture.py checks that.

    enums            closed lists: events, headers, reasons, codes
    errors           the tree of exceptions
    log_writer       writes log lines in a thread of its own
    core             pure decisions and values; `core.contracts` models every boundary
    clock            the wall clock, whose jumps are noticed
    settings         what an operator can set
    logging, metrics, tracing
    amqp             RabbitMQ: consume, publish, dead letters, shards, ownership
    inbox            the log of each user's messages: memory, SQLite or Redis
    auth             tokens and keys
    schema_folder    reads the JSON Schemas of events
    server_certificate  the certificate of the public port
    trusted_proxies  the address of a client behind proxies
    sockets          windows: Engine.IO sessions below, the Socket.IO server above
    fencing          prevents a bridge that lost its queue from storing messages
    outbox           publishes dead letters and retries while the pipeline continues
    event_publisher  publishes receipts and other events for workers
    presence         notes in the store which users have windows here
    pipeline         the consume loop: parse, append, settle. Read it first
    gauges           measures queues and the disk of the store
    readiness        whether the bridge is ready, and why not
    http             the public port, the operator port with its API and the console
    wiring           the composition root: builds all objects from the settings
    app              the lifecycle: start, drain, reload
    doctor           `bridge check`
    child_reaper     reaps the processes that PID 1 of a container adopts
    signals          SIGTERM drains, SIGHUP reloads
    workers          several processes under a supervisor
    demo             the demo page and its private RabbitMQ node
    cli              the commands
"""

__version__ = "0.1.0"
