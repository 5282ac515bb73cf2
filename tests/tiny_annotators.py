"""Folders as the Hugging Face hub has them: transformers' own classes, a few thousand random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file


def save(folder: Path, network: Any, processor: Any, seed: int = 0) -> Path:
    """Write a network, its weights drawn anew and larger than at the start of training so that its output has contrast."""
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode(mode=False):
        weights = {
            name: 0.2 * torch.randn(tensor.shape, generator=generator) if tensor.ndim > 1 else tensor
            for name, tensor in network.state_dict().items()
        }
        network.load_state_dict(weights)
        network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def save_depth_anything(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Depth Anything, patches of 14 pixels; `changes` go into its configuration."""
    with torch.inference_mode(mode=False):
        backbone = transformers.Dinov2Config(
            hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=28, patch_size=14,
            out_features=["stage1", "stage2", "stage3", "stage4"], reshape_hidden_states=False, apply_layernorm=True,
        )  # fmt: skip
        config = transformers.DepthAnythingConfig(
            backbone_config=backbone, patch_size=14, reassemble_hidden_size=16, neck_hidden_sizes=[8, 8, 8, 8],
            fusion_hidden_size=8, head_hidden_size=8, **changes,
        )  # fmt: skip
        network = transformers.DepthAnythingForDepthEstimation(config)
        if config.depth_estimation_type == "relative":  # the last layer ends in a ReLU: keep it open
            network.head.conv3.bias.data.fill_(50.0)
    processor = transformers.DPTImageProcessor(size={"height": 56, "width": 56}, keep_aspect_ratio=True, ensure_multiple_of=14)
    return save(folder, network, processor, seed)


def save_dpt(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """DPT as MiDaS has it, patches of 16 pixels, trained on 32x32 pixels."""
    with torch.inference_mode(mode=False):
        config = transformers.DPTConfig(
            hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=16,
            backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8, **changes,
        )  # fmt: skip
        network = transformers.DPTForDepthEstimation(config)
        network.head.head[4].bias.data.fill_(50.0)
    processor = transformers.DPTImageProcessor(
        size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.5] * 3, keep_aspect_ratio=False
    )
    return save(folder, network, processor, seed)


def save_dpt_hybrid(folder: Path, seed: int = 0) -> Path:
    """DPT-Hybrid, which takes pictures of its own size only, 32x32 pixels."""
    with torch.inference_mode(mode=False):
        config = transformers.DPTConfig(
            is_hybrid=True, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16, image_size=32,
            patch_size=16, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[64, 128, 8, 8], fusion_hidden_size=8,
            backbone_featmap_shape=[1, 256, 2, 2], backbone_config={
                "model_type": "bit", "layer_type": "bottleneck", "depths": [1, 1, 1], "hidden_sizes": [64, 128, 256],
                "num_groups": 8, "out_features": ["stage1", "stage2", "stage3"], "embedding_dynamic_padding": True,
                "global_padding": "same",
            },
        )  # fmt: skip
        network = transformers.DPTForDepthEstimation(config)
        network.head.head[4].bias.data.fill_(50.0)
    return save(folder, network, transformers.DPTImageProcessor(size={"height": 32, "width": 32}), seed)


def save_glpn(folder: Path, seed: int = 0) -> Path:
    """GLPN, which gives metres."""
    with torch.inference_mode(mode=False):
        config = transformers.GLPNConfig(
            hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 1, 1], decoder_hidden_size=8
        )
        network = transformers.GLPNForDepthEstimation(config)
    return save(folder, network, transformers.GLPNImageProcessor(), seed)


def save_zoedepth(folder: Path, seed: int = 0) -> Path:
    """ZoeDepth, which gives metres and pads its pictures."""
    with torch.inference_mode(mode=False):
        backbone = transformers.BeitConfig(
            image_size=32, patch_size=16, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16,
            out_features=["stage1", "stage2", "stage3", "stage4"], reshape_hidden_states=False,
            use_relative_position_bias=True,
        )  # fmt: skip
        config = transformers.ZoeDepthConfig(
            backbone_config=backbone, backbone_hidden_size=16, neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8,
            bottleneck_features=8, num_relative_features=32, bin_embedding_dim=8, num_attractors=[4, 2, 1, 1],
            bin_configurations=[{"n_bins": 8, "min_depth": 0.001, "max_depth": 10.0, "name": "nyu"}],
        )  # fmt: skip
        network = transformers.ZoeDepthForDepthEstimation(config)
    return save(folder, network, transformers.ZoeDepthImageProcessor(size={"height": 64, "width": 64}), seed)


def save_segformer(folder: Path, seed: int = 0, classes: int = 150) -> Path:
    """SegFormer on 64x64 pixels."""
    with torch.inference_mode(mode=False):
        config = transformers.SegformerConfig(
            hidden_sizes=[8, 8, 8, 8], num_attention_heads=[1, 1, 1, 1], depths=[1, 1, 1, 1], decoder_hidden_size=16,
            num_labels=classes,
        )  # fmt: skip
        network = transformers.SegformerForSemanticSegmentation(config)
    return save(folder, network, transformers.SegformerImageProcessor(size={"height": 64, "width": 64}), seed)


def save_upernet(folder: Path, seed: int = 0) -> Path:
    """UPerNet with ConvNeXt on 64x64 pixels."""
    with torch.inference_mode(mode=False):
        backbone = transformers.ConvNextConfig(
            hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], out_features=["stage1", "stage2", "stage3", "stage4"]
        )
        config = transformers.UperNetConfig(
            backbone_config=backbone, hidden_size=16, auxiliary_channels=8, auxiliary_in_channels=8, num_labels=150
        )
        network = transformers.UperNetForSemanticSegmentation(config)
    return save(folder, network, transformers.SegformerImageProcessor(size={"height": 64, "width": 64}), seed)


def save_yolos(folder: Path, seed: int = 0, names: dict[int, str] | None = None) -> Path:
    """YOLOS with six tokens, pictures of 64 pixels."""
    with torch.inference_mode(mode=False):
        config = transformers.YolosConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=[64, 64],
            patch_size=16, num_detection_tokens=6, id2label=names or {0: "person", 1: "dog", 2: "sofa", 3: "chair"},
        )  # fmt: skip
        network = transformers.YolosForObjectDetection(config)
    return save(folder, network, transformers.YolosImageProcessor(size={"shortest_edge": 64, "longest_edge": 128}), seed)


def save_vitpose(folder: Path, seed: int = 0, points: int = 17, experts: int = 1) -> Path:
    """ViTPose on 64x48 pixels; with several experts ViTPose++."""
    with torch.inference_mode(mode=False):
        backbone = transformers.VitPoseBackboneConfig(
            image_size=[64, 48], patch_size=[16, 16], hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2,
            out_indices=[2], num_experts=experts, part_features=8,
        )  # fmt: skip
        network = transformers.VitPoseForPoseEstimation(
            transformers.VitPoseConfig(backbone_config=backbone, num_labels=points, scale_factor=4)
        )
    return save(folder, network, transformers.VitPoseImageProcessor(size={"height": 64, "width": 48}), seed)


def save_rtdetr(folder: Path, seed: int = 0) -> Path:
    """RT-DETR on 64x64 pixels with the older names of COCO's classes."""
    with torch.inference_mode(mode=False):
        backbone = transformers.RTDetrResNetConfig(
            embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], out_features=["stage2", "stage3", "stage4"],
            layer_type="basic",
        )  # fmt: skip
        config = transformers.RTDetrConfig(
            backbone_config=backbone, encoder_hidden_dim=16, encoder_in_channels=[8, 8, 8], encoder_ffn_dim=16,
            encoder_attention_heads=2, d_model=16, num_queries=10, decoder_in_channels=[16, 16, 16], decoder_ffn_dim=16,
            decoder_layers=2, decoder_attention_heads=2, encoder_layers=1, num_denoising=0,
            id2label={0: "person", 1: "aeroplane", 2: "sofa"},
        )  # fmt: skip
        network = transformers.RTDetrForObjectDetection(config)
    return save(folder, network, transformers.RTDetrImageProcessor(size={"height": 64, "width": 64}), seed)


def rewrite(folder: Path, *, drop: str) -> None:
    """Take the weights whose names contain `drop` out of a folder's file."""
    file = folder / "model.safetensors"
    weights = {name: tensor.clone() for name, tensor in load_file(file).items()}
    kept = {name: tensor for name, tensor in weights.items() if drop not in name}
    assert len(kept) < len(weights)
    save_file(kept, file, metadata={"format": "pt"})
