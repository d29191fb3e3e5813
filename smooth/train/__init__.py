"""Fine-tuning: state, one step, the loop, the engine (DeepSpeed) and the launcher (Ray Train)."""
