"""``python -m smooth``: the same as the console script, with an interpreter named in full."""

from smooth.cli import app

app(prog_name="smooth")
