"""Tests: unit (mirrors smooth/), numerics (independent references), integration (real services), benchmarks."""
