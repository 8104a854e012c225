"""
The operator's API: one module for each group of operations.

A handler receives a validated request and returns a model. The models and operations are
defined in bridge/core/contracts/operator, from which the OpenAPI document is generated.
"""
