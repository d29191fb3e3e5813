"""Promotion of registered models: the gate, the moves of the alias ``production``, and what can be told of them.

Nothing here locks: `flows/promote.py` sees to it that one promotion or rollback is under way at a time.
"""

PRODUCTION, PREVIOUS, CANDIDATE = "production", "previous", "candidate"


class PromotionError(ValueError):
    """A promotion or rollback can't be done as asked; the message says what to do. Nothing was changed."""
