"""Networks from scratch: sizes of which none can be built are said first, in one line."""

import sys

import pytest

from finetune import prior, vae
from pipeline.errors import UserError

VAE = [
    (("--norm-groups", 7), "--channels 24: must be a multiple of 7"),
    (("--norm-groups", 0), "--norm-groups 0: must be 1 or more"),
    (("--channels", 24, 50), "--channels 50: must be a multiple of 8"),
    (("--channels",), r"--channels \(none\)"),
    (("--channels", *[8] * 9), "--channels .* at most 8 numbers"),
    (("--channels", 10**9), "--channels 1000000000: .* up to 8192"),
    (("--channels", 0), "--channels 0: must be numbers above 0"),
    (("--latent-channels", 10**9), "--latent-channels 1000000000: must be in"),
    (("--crop.size-px", 63, 65), "--crop.size-px 63 65: .* multiples of 8"),
    (("--crop.size-px", 36, 64), "--crop.size-px 36 64: .* multiples of 8"),
    (("--cached-crops", 10**9), "--cached-crops 1000000000: take at least .* memory"),
    (("--init", "{net}"), "is of a ControlNetModel, but AutoencoderKL is needed"),
    (("--init", "{base}"), "here it is .*vae"),
    (("--init", "nowhere"), "nowhere: has no config.json"),
    (("--decoder-only",), "--decoder-only: there is no encoder to keep"),
    (("--denoiser", "pocket"), "--denoiser: .* must not change; add --decoder-only"),
    (
        ("--decoder-only", "--init", "pocket", "--denoiser", "{base}"),
        r"--denoiser .*: its autoencoder has the latent_channels \d+, that of --init \d+; name",
    ),
    (
        ("--decoder-only", "--init", "pocket", "--denoiser", "pocket", "--crop.size-px", 72, 64),
        "--crop.size-px 72 64: .* for --denoiser pocket",
    ),
    (("--denoiser-strength", 2), "--denoiser-strength 2: must be in 0..1"),
]
PRIOR = [
    (("--vae", "{net}"), "is of a ControlNetModel, but AutoencoderKL is needed"),
    (("--vae", "{base}/unet"), "is of a UNet2DConditionModel, but AutoencoderKL is needed"),
    (("--vocabulary", 3), "--vocabulary 3: must be 514 or more"),
    (("--vocabulary", 10**9), "--vocabulary 1000000000: must be in"),
    (("--text-length", 1), "--text-length 1: must be 3 or more"),
    (("--channels", 64, 90), "--channels 90: must be a multiple of 16"),
    (("--heads", 5), "--channels 96: must be a multiple of 5"),
    (("--text-width", 98), "--text-width 98: must be a multiple of 4"),
    (("--layers", 10**9), "--layers 1000000000: must be in"),
    (("--crop.size-px", 64, 120), "--crop.size-px 64 120: .* multiples of 16"),
    (("--init", "{net}"), "has no model_index.json"),
]


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [(vae, *row) for row in VAE] + [(prior, *row) for row in PRIOR],
)
def test_sizes_that_cannot_be_built_are_said_first(
    program, arguments, message, tiny_base, tiny_controlnet, tiny_dataset, tmp_path, monkeypatch
):
    names = {"net": tiny_controlnet, "base": tiny_base}
    words = ["program", "--data", tiny_dataset(n=1), "--output", tmp_path / "run"]
    if program is prior and "--vae" not in arguments:
        words += ["--vae", tiny_base / "vae"]
    for name, place in names.items():
        arguments = [str(a).replace(f"{{{name}}}", str(place)) for a in arguments]
    monkeypatch.setattr(sys, "argv", [str(word) for word in [*words, *arguments]])
    with pytest.raises(UserError, match=message) as caught:
        program.main()
    assert not (tmp_path / "run").exists() and "\n" not in str(caught.value)
