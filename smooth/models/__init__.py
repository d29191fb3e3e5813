"""Models: loading pipelines, adapters, and the committed small model."""

WEIGHTS_NAME = "pytorch_lora_weights.safetensors"  # of an adapter, as diffusers looks for it
UNET = "unet"  # folder of a fine-tuned UNet, as in a diffusers pipeline
