"""Consuming: consumers, one per queue, and the intake that supervises them."""
