"""What pyproject.toml tells the Comfy registry: pictures of the sizes it takes, words it knows, addresses that lead on."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageStat

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
REPOSITORY = PROJECT["project"]["urls"]["Repository"]
RAW = REPOSITORY.replace("github.com", "raw.githubusercontent.com") + "/main/"
ACCELERATORS = {"NVIDIA CUDA", "AMD ROCm", "Intel Arc", "Apple Metal"}
SYSTEMS = {"OS Independent", "Microsoft :: Windows", "POSIX :: Linux", "MacOS"}
"""As comfy-cli 1.23.0 knows them; one that it does not know makes it drop the whole list."""


def picture(name: str) -> tuple[int, int, int]:
    """Width, height and bytes of the file in the repository that an address of `[tool.comfy]` names."""
    address = PROJECT["tool"]["comfy"][name]
    assert address.startswith(RAW)
    path = ROOT / address.removeprefix(RAW)
    with Image.open(path) as file:
        return *file.size, path.stat().st_size


def test_the_icon_is_a_square_of_at_most_400_pixels():
    width, height, size = picture("Icon")
    assert width == height <= 400
    assert size < 50_000


def test_the_banner_is_21_to_9():
    width, height, size = picture("Banner")
    assert width * 9 == height * 21
    assert size < 100_000


def test_both_pictures_are_what_the_script_draws():
    import registry_pictures

    with Image.open(registry_pictures.SHEET) as sheet:
        drawn = {"icon.png": registry_pictures.draw_icon(sheet), "banner.jpg": registry_pictures.draw_banner(sheet)}
    for name, image in drawn.items():
        with Image.open(registry_pictures.FOLDER / name) as file:
            difference = ImageChops.difference(image, file.convert("RGB"))
        assert max(ImageStat.Stat(difference).mean) < 3, name  # fewer colours, and JPEG


def test_the_classifiers_are_words_of_the_registry():
    classifiers = PROJECT["project"]["classifiers"]
    environments = [one for one in classifiers if one.startswith("Environment ::")]
    assert all(one.removeprefix("Environment :: GPU :: ") in ACCELERATORS for one in environments)
    systems = [one.removeprefix("Operating System :: ") for one in classifiers if one.startswith("Operating System ::")]
    assert systems
    assert set(systems) <= SYSTEMS


@pytest.mark.parametrize("name", ["Repository", "Documentation", "Issues"])
def test_the_addresses_lie_in_the_repository(name):
    address = PROJECT["project"]["urls"][name]
    assert address.startswith(REPOSITORY)
    _, _, page = address.partition("/blob/main/")
    assert (ROOT / page).exists()
