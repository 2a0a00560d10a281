"""Devices against speeds that they were not fitted on, and files that say too little."""

from __future__ import annotations

from pathlib import Path

import pytest

from mobilemoe_mlx.accounting.published import published_models
from mobilemoe_mlx.errors import UserError
from mobilemoe_mlx.scaling.devices import device_names, read_device


@pytest.mark.parametrize(
    ("device", "context", "published"),
    [  # the paper's table of S, contexts that the device files leave out
        ("iphone16pro", 1024, 148.4),
        ("iphone16pro", 4096, 54.2),
        ("galaxys25", 1024, 112.0),
        ("galaxys25", 4096, 48.9),
    ],
)
def test_speeds_that_were_not_fitted(device: str, context: int, published: float) -> None:
    model = published_models()["MobileMoE-S"].architecture
    seconds = read_device(device).seconds_per_token(model, context, quantized=True)
    assert 1 / seconds == pytest.approx(published, rel=0.15)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\nbandwidth = 5e10\nattention_flops = 2e10\n')
    device = read_device(str(path))
    assert (device.name, device.bandwidth, device.attention_flops) == ("mine", 5e10, 2e10)
    speeds = []
    for context in (256, 4096):  # what this device would reach, given back as measurements
        model = published_models()["MobileMoE-M"].architecture
        rate = 1 / device.seconds_per_token(model, context, quantized=True)
        speeds.append(
            f'{{ model = "MobileMoE-M", context = {context}, tokens_per_second = {rate} }}'
        )
    path.write_text(f'name = "measured"\ndecode = [{", ".join(speeds)}]\n')
    measured = read_device(str(path))
    assert measured.bandwidth == pytest.approx(5e10)
    assert measured.attention_flops == pytest.approx(2e10)


_S = '{ model = "MobileMoE-S", context = 256, tokens_per_second = 100 }'


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "name is missing"),
        ('name = "x"', "it needs bandwidth and attention_flops, or decode"),
        (f'name = "x"\ndecode = [{_S}, {_S}]', "at two contexts at least"),
        ('name = "x"\nbandwith = 3', "did you mean 'bandwidth'"),
        ('name = "x"\nbandwidth = 38\nattention_flops = 18e9', "bandwidth is 38.0"),  # GB/s
        ('name = "x"\nbandwidth = -3', "bandwidth is -3.0; it must be in 1e.06"),
        (
            f'name = "x"\ndecode = [{_S.replace("-S", "-X")}]',
            "decode has the model 'MobileMoE-X' .did you mean",
        ),
        (
            f'name = "x"\ndecode = [{_S}, {_S.replace("256", "8192").replace("100", "900")}]',
            "do not fall with the context",
        ),
    ],
)
def test_files_that_say_too_little(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "x.toml"
    path.write_text(content)
    with pytest.raises(UserError, match=told):
        read_device(str(path))


def test_unknown_devices() -> None:
    assert device_names() == ["galaxys25", "iphone16pro"]
    with pytest.raises(UserError, match=r"no device 'iphone16' .did you mean 'iphone16pro'"):
        read_device("iphone16")
