"""Metrics that networks give on findings, of privacy, and of the use of generated studies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from xgem.eval.metric_table.spec import MetricSpec

_B, _X, _C = "CheXGenBench", "XGeM", "ChexGen"
_M: Final = "xgem.metrics."


_ALL_CLASSES: Final = ("factual", "utility", "fairness")


def _findings() -> Iterator[MetricSpec]:
    """Of classifiers and of what they see: factual correctness, utility, fairness."""
    means = ("micro", "macro", "weighted")
    source = f"{_X}, Tables 8 to 11; {_C}"
    for name, title, doc, function in (
        ("auroc", "AUROC", "Area under the ROC curve of a finding", "auc.auc"),
        ("f1", "F1", "F1 of a finding at the classifier's threshold", "classification.compare_f1_by_class"),
        ("accuracy", "accuracy", "Accuracy of a finding at the threshold", "classification.classification_measures"),
    ):
        families = ("utility",) if name == "accuracy" else _ALL_CLASSES
        families = (*families, "text") if name == "f1" else families
        families = (*families, "agreement") if name == "auroc" else families
        yield MetricSpec(name, families, True, f"{doc}.", source=source, function=f"{_M}{function}", title=title)
        for mean in means if name != "accuracy" else ("macro",):
            yield MetricSpec(
                f"{name}_{mean}",
                tuple(family for family in families if family != "text"),
                True,
                f"{doc}, {mean} average over findings.",
                source=source,
                function=f"{_M}{function}",
                title=f"{title}, {mean}",
            )
    yield MetricSpec(
        "pearson",
        ("factual", "utility"),
        True,
        "Pearson's r of a classifier's scores on generated and real images, or of predicted and true severity.",
        "[-1, 1]",
        f"{_C}, factual correctness",
        f"{_M}correlation.compare_pearson",
        "Pearson's r",
    )
    for name, doc in (
        ("pearson_macro", "Pearson's r of a classifier's scores on generated and real images, mean over findings."),
        ("pearson_flattened", "Pearson's r of a classifier's scores on generated and real images, findings pooled."),
    ):
        yield MetricSpec(
            name,
            ("factual",),
            True,
            doc,
            "[-1, 1]",
            f"{_C}, factual correctness (the paper does not say which of the two)",
            f"{_M}correlation.compare_pearson",
            f"Pearson's r, {name.partition('_')[2]}",
        )


def _privacy() -> Iterator[MetricSpec]:
    compat = (
        "own_prompt=True compares with the training image of the own prompt alone, as CheXGenBench's code does; the "
        "paper says the closest training image."
    )
    for space, measured, source, function in (
        ("pixel", "root mean square difference of grey levels", f"{_B} 2.3 and 3.2", "pixel_distance"),
        ("aligned", "distance that allows for small shifts and other exposure", "xgem", "aligned_distance"),
        (
            "latent",
            "distance of features over the root of their number",
            f"{_B} 2.3 and 3.2 (RAD-DINO)",
            "latent_distance",
        ),
    ):
        for name, better, doc, unit in (
            ("distance", True, f"Mean {measured} to the closest training image.", ">= 0"),
            ("distance_per_prompt", True, f"The same, of each prompt's nearest sample: {measured}.", ">= 0"),
            ("distance_min", True, f"Smallest {measured} to a training image.", ">= 0"),
        ):
            yield MetricSpec(
                f"{space}_{name}", ("privacy",), better, doc, unit, source, f"{_M}privacy.{function}", compat=compat
            )
        yield MetricSpec(
            f"{space}_authenticity",
            ("privacy",),
            True,
            "Share of generations farther from their closest training image than that one is from its own neighbour.",
            source="Alaa et al. 2022, section 3.3",
            function=f"{_M}memorisation.authenticity",
        )
        yield MetricSpec(
            f"{space}_nearer",
            ("privacy",),
            False,
            "Probability that a generation is nearer to training than a held-out real image; 0.5 without memory.",
            source="Mann and Whitney 1947",
            function=f"{_M}memorisation.memorisation_test",
            title=f"{space}, nearer than held-out",
        )
        yield MetricSpec(
            f"{space}_near",
            ("privacy",),
            False,
            "Share of generations nearer to training than a small quantile of held-out real images.",
            source="Nelson 1963",
            function=f"{_M}memorisation.memorisation_test",
            title=f"{space}, share below the held-out quantile",
        )
    for name, doc, unit in (
        ("score", "Mean re-identification score with the closest training image.", "[0, 1]"),
        ("score_per_prompt", "Mean re-identification score, of each prompt's worst sample.", "[0, 1]"),
        ("score_max", "Highest re-identification score.", "[0, 1]"),
        ("count", "Generations whose re-identification score is above delta.", ">= 0, images"),
        ("count_prompts", "Prompts of which a generation's re-identification score is above delta.", ">= 0, prompts"),
    ):
        yield MetricSpec(
            f"reid_{name}",
            ("privacy",),
            False,
            doc,
            unit,
            f"Packhaeuser et al. 2022; {_B} 2.3 and 3.2",
            f"{_M}privacy.reidentification_score",
            f"re-identification {name.replace('_', ' ')}",
            compat,
        )


def _utility() -> Iterator[MetricSpec]:
    def row(name: str, better: bool, doc: str, function: str, title: str = "", unit: str = "[0, 1]") -> MetricSpec:
        return MetricSpec(name, ("utility",), better, doc, unit, f"{_C}, downstream tasks", function, title)

    yield row(
        "brier_score",
        False,
        "Mean squared error of probabilities, case by case.",
        f"{_M}classification.brier",
        "Brier score",
    )
    segmentation = "xgem.judges.tasks.segmentation.Segmentation"
    yield row("dice_macro", True, "Dice, mean over structures.", segmentation, "Dice, macro")
    yield row("positive_dice", True, "Dice on images that show the structure.", segmentation, "positive Dice")
    yield row(
        "negative_dice",
        True,
        "Share of images without the structure where none is found.",
        segmentation,
        "negative Dice",
    )
    yield row("dice_by_image", True, "Dice, image by image.", segmentation, "Dice by image")
    detection = f"{_M}detection.precision_and_recall"
    yield row("map50", True, "Average precision at IoU 0.5, mean over classes.", detection, "mAP50")
    yield row("mar50", True, "Highest recall at IoU 0.5, mean over classes.", detection, "mAR50")
    yield row("ap50", True, "Average precision of a class at IoU 0.5.", detection, "AP50")
    yield row("ar50", True, "Highest recall of a class at IoU 0.5.", detection, "AR50")
    yield row("f1_by_image", True, "F1 of an image's boxes at IoU 0.5.", f"{_M}detection.image_f1", "F1 by image")
    severity, unit = "xgem.judges.tasks.severity.Severity", ">= 0, points of the score"
    yield row("mae", False, "Mean absolute error of the severity score.", severity, "MAE", unit)
    yield row("mse", False, "Mean squared error of the severity score.", severity, "MSE", ">= 0, squared points")
    yield row("absolute_error", False, "Absolute error of the severity score, case by case.", severity, "", unit)


def _fairness() -> Iterator[MetricSpec]:
    for name, title in (("f1_weighted", "weighted F1"), ("auroc_macro", "AUROC, macro")):
        for suffix, better, doc, function in (
            ("gap", False, "Highest minus lowest subgroup's", "gap"),
            ("worst_group", True, "Lowest subgroup's", "by_group"),
        ):
            yield MetricSpec(
                f"{name}_{suffix}",
                ("fairness",),
                better,
                f"{doc} {title}.",
                source=f"{_C}, fairness",
                function=f"{_M}fairness.{function}",
                title=f"{title}: {suffix.replace('_', ' ')}",
            )
        yield MetricSpec(
            f"{name}_group_correlation",
            ("fairness",),
            True,
            f"Pearson's r of the subgroups' {title} on real and on synthetic images.",
            "[-1, 1]",
            f"{_C}, fairness",
            f"{_M}fairness.group_correlation",
            f"{title}: r of real and synthetic",
        )


def rows() -> Iterator[MetricSpec]:
    """The metrics of this module."""
    for part in (_findings, _privacy, _utility, _fairness):
        yield from part()
