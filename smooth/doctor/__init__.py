"""`smooth doctor`: whether this machine can do what a preset asks, and how to mend what it lacks.

Each check is a function that returns what it found. Nothing here loads torch or Ray, nothing is changed, and nobody is
asked but the services of this cluster and the hub that the preset's model comes from.
"""
