"""Colours of classes. Data only."""

from __future__ import annotations

Colour = tuple[int, int, int]
"""RGB, 0 to 255."""

_ADE20K = bytes.fromhex("""
787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07 e005ff ebff07 96053d 787846 08ff33
ff0652 8fff8c ccff04 ff3307 cc4603 0066c8 3de6fa ff0633 0b66ff ff0747 ff09e0 0907e6 dcdcdc ff095c 7009ff
08ffd6 07ffe0 ffb806 0aff47 ff290a 07ffff e0ff08 6608ff ff3d06 ffc207 ff7a08 00ff14 ff0829 ff0599 0633ff
eb0cff a09614 00a3ff 8c8c8c fa0a0f 14ff00 1fff00 ff1f00 ffe000 99ff00 0000ff ff4700 00ebff 00adff 1f00ff
0bc8c8 ff5200 00fff5 003dff 00ff70 00ff85 ff0000 ffa300 ff6600 c2ff00 008fff 33ff00 0052ff 00ff29 00ffad
0a00ff adff00 00ff99 ff5c00 ff00ff ff00f5 ff0066 ffad00 ff0014 ffb8b8 001fff 00ff3d 0047ff ff00cc 00ffc2
00ff52 000aff 0070ff 3300ff 00c2ff 007aff 00ffa3 ff9900 00ff0a ff7000 8fff00 5200ff a3ff00 ffeb00 08b8aa
8500ff 00ff5c b800ff ff001f 00b8ff 00d6ff ff0070 5cff00 00e0ff 70e0ff 46b8a0 a300ff 9900ff 47ff00 ff00a3
ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff ff007a fff500 0abed4 d6ff00 00ccff 1400ff ffff00 0099ff 0029ff
00ffcc 2900ff 29ff00 ad00ff 00f5ff 4700ff 7a00ff 00ffb8 005cff b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff
""")
ADE20K: tuple[Colour, ...] = tuple((_ADE20K[i], _ADE20K[i + 1], _ADE20K[i + 2]) for i in range(0, len(_ADE20K), 3))
"""The 150 classes of ADE20K in their usual order, wall first. Source: open-mmlab/mmsegmentation mmseg/datasets/ade.py."""

# fmt: off
COCO: dict[str, Colour] = {
    "person": (255, 0, 0), "bicycle": (0, 255, 0), "car": (0, 0, 255), "motorcycle": (255, 255, 0), "airplane": (255, 0, 255),
    "bus": (0, 255, 255), "train": (128, 128, 0), "truck": (128, 0, 128), "boat": (0, 128, 128),
    "traffic light": (128, 128, 128), "fire hydrant": (64, 0, 0), "stop sign": (0, 64, 0), "parking meter": (0, 0, 64),
    "bench": (64, 64, 0), "bird": (64, 0, 64), "cat": (0, 64, 64), "dog": (192, 192, 192), "horse": (32, 32, 32),
    "sheep": (96, 96, 96), "cow": (160, 160, 160), "elephant": (224, 224, 224), "bear": (32, 0, 0), "zebra": (0, 32, 0),
    "giraffe": (0, 0, 32), "backpack": (32, 32, 0), "umbrella": (32, 0, 32), "handbag": (0, 32, 32), "tie": (96, 0, 0),
    "suitcase": (0, 96, 0), "frisbee": (0, 0, 96), "skis": (96, 96, 0), "snowboard": (96, 0, 96), "sports ball": (0, 96, 96),
    "kite": (160, 0, 0), "baseball bat": (0, 160, 0), "baseball glove": (0, 0, 160), "skateboard": (160, 160, 0),
    "surfboard": (160, 0, 160), "tennis racket": (0, 160, 160), "bottle": (224, 0, 0), "wine glass": (0, 224, 0),
    "cup": (0, 0, 224), "fork": (224, 224, 0), "knife": (224, 0, 224), "spoon": (0, 224, 224), "bowl": (64, 64, 64),
    "banana": (128, 64, 64), "apple": (64, 128, 64), "sandwich": (64, 64, 128), "orange": (128, 128, 64),
    "broccoli": (128, 64, 128), "carrot": (64, 128, 128), "hot dog": (192, 64, 64), "pizza": (64, 192, 64),
    "donut": (64, 64, 192), "cake": (192, 192, 64), "chair": (192, 64, 192), "couch": (64, 192, 192),
    "potted plant": (96, 32, 32), "bed": (32, 96, 32), "dining table": (32, 32, 96), "toilet": (96, 96, 32),
    "tv": (96, 32, 96), "laptop": (32, 96, 96), "mouse": (160, 32, 32), "remote": (32, 160, 32), "keyboard": (32, 32, 160),
    "cell phone": (160, 160, 32), "microwave": (160, 32, 160), "oven": (32, 160, 160), "toaster": (224, 32, 32),
    "sink": (32, 224, 32), "refrigerator": (32, 32, 224), "book": (224, 224, 32), "clock": (224, 32, 224),
    "vase": (32, 224, 224), "scissors": (64, 96, 96), "teddy bear": (96, 64, 96), "hair drier": (96, 96, 64),
    "toothbrush": (160, 96, 96),
}
# fmt: on
"""The 80 classes of COCO in their usual order. Source: xyfJASON/ctrlora@b4422b4 annotator/bbox/__init__.py, color_dict."""

ALIASES = {
    "aeroplane": "airplane", "diningtable": "dining table", "motorbike": "motorcycle", "pottedplant": "potted plant",
    "sofa": "couch", "tvmonitor": "tv",
}  # fmt: skip
"""Names of classes in older lists of COCO, such as YOLO's and RT-DETR's."""
