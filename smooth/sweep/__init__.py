"""Trainings that differ in the regularizer, side by side: what smoothness costs in quality, and which to take."""
