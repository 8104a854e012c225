"""`bridge demo`: its page, and the private RabbitMQ node that it and the tests run."""
