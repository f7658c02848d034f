"""A second judge that shares no code with the product: other client library, own RESP parser, own comparison.

It reads everything on both sides into a few ints per record and compares. `python -m tests.oracle --help`.
"""
