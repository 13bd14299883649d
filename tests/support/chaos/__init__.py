"""kill -9 of the broker process, over and over, under load, with an account of its own of every accepted event.

``python -m tests.support.chaos`` (``make chaos``) runs it; tests/e2e/test_chaos.py is its smaller form.
"""
