"""A trained model in the formats of others: a diffusers or kohya LoRA, a merged pipeline, ONNX graphs."""


class ExportError(ValueError):
    """The model can't be written in that format, or not there; the message says which knob to turn."""
