"""Sharpness of generated images: radial power beside that of real ones (:mod:`xgem.metrics.spectrum`)."""

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
    """Power of generated images over that of their studies' real ones; what the model's codec keeps is a reference.

    Args:
        real, generated: images of one view; the mean over the samples of a study is taken.
        model: reads the images at its own size and, by its codec, reconstructs the real ones.

    Raises:
        DataError: no generation names a real study.
    """
    target, outputs = samples(real, generated)
    actual, images = pixels_of(target, model), [pixels_of(one, model) for one in outputs]
    rebuilt = model.reconstruct(view, actual)
    bootstrap = Bootstrap(len(actual), draws=draws, seed=seed)
    ratio = average([spectrum.band_ratio(one, actual, bootstrap) for one in images])
    kept = spectrum.band_ratio(rebuilt, actual, bootstrap)
    metric = Metric.measured("band_power_ratio", ratio, paired={"reconstructed": kept})
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
        {name: (frequency, curve) for name, curve in curves.items()}, x="frequency / Nyquist", y="power / real"
    )
    about = paired_settings(real, generated, n=bootstrap.n, draws=draws, seed=seed) | {
        "band, in units of Nyquist": spectrum.BAND
    }
    return FamilyResult("fidelity", [metric], about, details=details, plots={"Radial power": drawn})


def _power(images: Images, real: Images) -> Array:
    curves = [spectrum.radial_power(one)[1].mean(axis=0) for one in (images, real)]
    return curves[0] / np.maximum(curves[1], 1e-12)
