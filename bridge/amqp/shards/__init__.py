"""Shards: several inbound queues, the assignment of users to them and of them to bridges."""
