"""filmstrip: Video-LLaVA from scratch in PyTorch."""
