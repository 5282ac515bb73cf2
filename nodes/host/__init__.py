"""The only files that import ComfyUI: when the host changes, this folder changes."""
