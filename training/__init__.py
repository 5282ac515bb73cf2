"""Train a condition of CtrLoRA from pairs of pictures. Knows a diffusion model only through `backbone.Backbone`."""
