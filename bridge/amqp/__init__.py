"""
RabbitMQ: connections, topology, the fast way in, publishing with confirms.

The only room that imports aio_pika, aiormq and pamqp. Their errors end here: what
leaves is BrokerUnavailableError (try again) or a sentence that says what to do.
"""
