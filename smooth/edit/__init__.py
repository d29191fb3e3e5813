"""What smoothness is for: pictures from prompts, interpolation, inversion, editing.

The functions take a pipeline and tensors and keep no state of their own. A pipeline has one (its scheduler's steps, the
adapter's strength), so two threads share one by ``EditModel.lock`` alone.
"""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with the steps done and all of them, after each step of the network; what it raises ends the work."""

LARGEST_SEED = 2**63 - 1
LONGEST_PROMPT = 2_000  # characters; the text encoder reads some 77 tokens
STEPS, GUIDANCE = 30, 3.0  # where nothing else is asked for
