"""
RabbitMQ: connections, topology, consuming, publishing with confirms, dead letters, shards.

Only this package imports aio_pika, aiormq and pamqp. Their errors end here: callers receive
BrokerUnavailableError, which may succeed later, or an error that says what to do.
"""
