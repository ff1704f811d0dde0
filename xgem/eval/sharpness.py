"""Sharpness of generated images: radial power relative to real ones (:mod:`xgem.metrics.spectrum`)."""

from __future__ import annotations

import numpy as np

from xgem.data.sets import EvalSet, Images
from xgem.eval import plots
from xgem.eval.pairing import paired_settings
from xgem.eval.record import FamilyResult, Metric
from xgem.eval.studies import pixels_of, samples
from xgem.metrics import spectrum
from xgem.metrics.bootstrap import Array, Bootstrap, average
from xgem.pipeline.embedding import Evaluated


def sharpness(
    real: EvalSet, generated: EvalSet, model: Evaluated, view: str, *, draws: int = 1000, seed: int = 0
) -> FamilyResult:
    """Power of generated images over that of their studies' real ones; the reference is the model's reconstruction.

    Args:
        real, generated: images of one view; values are averaged over the samples of a study.
        model: reads the images at its own size, and reconstructs the real ones with its codec.

    Raises:
        DataError: no generated image names a real study.
    """
    # Power ratios of generated and of reconstructed images
    target, outputs = samples(real, generated)
    actual, images = pixels_of(target, model), [pixels_of(sample, model) for sample in outputs]  # (n, s, s) each
    rebuilt = model.reconstruct(view, actual)
    bootstrap = Bootstrap(len(actual), draws=draws, seed=seed)
    ratio = average([spectrum.band_ratio(sample, actual, bootstrap) for sample in images])
    codec_ratio = spectrum.band_ratio(rebuilt, actual, bootstrap)
    metric = Metric.measured("band_power_ratio", ratio, paired={"reconstructed": codec_ratio})
    # Curves over frequency, and the codec's error
    curves = {"generated": _power(images[0], actual), "reconstructed": _power(rebuilt, actual)}
    frequency = spectrum.radial_power(actual[:1])[0]
    error = ((rebuilt.astype(np.float64) - actual) ** 2).mean(axis=(1, 2))
    psnr = bootstrap.mean(10 * np.log10(255**2 / np.maximum(error, 1e-9)))
    details = {
        "radial power over that of real images": {
            "frequency, in units of Nyquist": np.round(frequency, 4).tolist(),
            **{name: np.round(curve, 4).tolist() for name, curve in curves.items()},
        },
        "PSNR of reconstructed real images, dB": psnr.estimate().as_dict(),
    }
    drawn = plots.curves(
        {name: (frequency, curve) for name, curve in curves.items()},
        x="spatial frequency / Nyquist",
        y="power / power of real images",
    )
    about = paired_settings(real, generated, n=bootstrap.n, draws=draws, seed=seed) | {
        "band, in units of Nyquist": spectrum.BAND
    }
    return FamilyResult("fidelity", [metric], about, details=details, plots={"Radial power": drawn})


def _power(images: Images, real: Images) -> Array:
    """Mean radial power relative to that of real images, (bins,)."""
    curves = [spectrum.radial_power(side)[1].mean(axis=0) for side in (images, real)]
    return curves[0] / np.maximum(curves[1], 1e-12)
