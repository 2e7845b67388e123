"""The adapters: how text, images and speech become streams of symbols, and back."""
