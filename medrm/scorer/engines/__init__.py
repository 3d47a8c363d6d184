"""What completes a conversation: transformers, vLLM, a service."""
