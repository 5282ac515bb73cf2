"""Train a control from pairs of pictures. Knows a diffusion model only through `backbone.Backbone`."""
