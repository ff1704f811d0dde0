"""Metrics of generated images and reports: agreement, fidelity, text, consistency, control, prompts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from xgem.eval.metric_table.spec import MetricSpec

_B, _X, _C = "CheXGenBench", "XGeM", "ChexGen"
_M: Final = "xgem.metrics."


def _agreement() -> Iterator[MetricSpec]:
    def row(name: str, doc: str, function: str, title: str, unit: str = "[-1, 1]", source: str = "xgem") -> MetricSpec:
        return MetricSpec(name, ("agreement",), True, doc, unit, source, f"{_M}{function}", title)

    yield row(
        "prompt_agreement",
        "Cosine of the output with the mean of its prompts in the prompt encoders' space.",
        "agreement.cosine",
        "agreement with prompts (cosine)",
        source=f"{_X}, Eq. 2 and 5",
    )
    yield row(
        "target_agreement",
        "Cosine of the output with the study's real image or report in the prompt encoders' space.",
        "agreement.cosine",
        "agreement with target (cosine)",
        source=f"{_X}, Eq. 5",
    )
    yield row(
        "one_minus_own_rank",
        "Share of other studies' real images that are farther from the output than the study's own; 0.5 is chance.",
        "agreement.own_rank_scores",
        "1 - own-patient rank",
        "[0, 1]",
    )
    yield row(
        "pixel_correlation",
        "Pearson's r with the study's real image on a grid of 16 x 16 pixels.",
        "agreement.coarse",
        "pixel correlation, 16 x 16",
    )
    yield row(
        "classifier_agreement",
        "Pearson's r of a classifier's logits on generated and real images, mean over classes.",
        "agreement.logit_scores",
        "classifier logits (r)",
        source=f"{_C}, factual correctness",
    )
    yield row(
        "input_icc",
        "Share of the variance of the outputs' vectors (or logits) that lies between studies; the rest is of the seed.",
        "seeds.intraclass_correlation",
        "input over seed (ICC)",
        "[-1 / (k - 1), 1], k samples",
        "Shrout & Fleiss 1979, ICC(1,1); Shou et al. 2013",
    )
    yield row(
        "label_jaccard",
        "Jaccard index of the findings of two samples of one study; shuffled: of one sample of two studies.",
        "seeds.compare_jaccard",
        "findings of two samples (Jaccard)",
        "[0, 1]",
    )


def _fidelity() -> Iterator[MetricSpec]:
    def row(
        name: str,
        better: bool | None,
        doc: str,
        source: str,
        function: str,
        *,
        unit: str = "[0, 1]",
        title: str = "",
        compat: str = "",
    ) -> MetricSpec:
        return MetricSpec(name, ("fidelity",), better, doc, unit, source, f"{_M}{function}", title, compat)

    yield row(
        "fid",
        False,
        "Frechet distance of Gaussians fitted to the features of real and generated images.",
        f"Heusel et al. 2017, Eq. 6; {_B} 2.1; {_X}, Table 1; {_C}, Fig. 2",
        "fidelity.frechet_distance",
        unit=">= 0",
        title="FID (Frechet distance)",
    )
    yield row(
        "kid",
        False,
        "Unbiased squared maximum mean discrepancy of the features under a cubic polynomial kernel.",
        f"Binkowski et al. 2018; {_B} 2.1",
        "fidelity.kernel_distance",
        unit="about >= 0 (unbiased)",
        title="KID (kernel distance)",
        compat="subset_size=None takes the size of the smaller set, as CheXGenBench's code does (default 1,000).",
    )
    for name, doc, source in (
        ("precision", "Share of generated images inside the manifold of real ones.", "Kynkaanniemi et al. 2019"),
        ("recall", "Share of real images inside the manifold of generated ones.", "Kynkaanniemi et al. 2019"),
        ("density", "Mean number of real neighbourhoods that hold a generated image, over k.", "Naeem et al. 2020"),
        ("coverage", "Share of real images whose neighbourhood holds a generated one.", "Naeem et al. 2020"),
    ):
        unit = ">= 0" if name == "density" else "[0, 1]"
        yield row(name, True, doc, f"{source}; {_B} 2.1", "fidelity.prdc", unit=unit)
    yield row(
        "alignment",
        True,
        "Cosine of a generated image with its prompt in the space of an image-text model.",
        f"{_B} 2.1 (BioViL-T)",
        "fidelity.alignment",
        unit="[-1, 1]",
        title="image-text alignment",
    )
    yield row(
        "ssim",
        False,
        "Structural similarity of the samples of one prompt, mean over pairs; lower is more diverse.",
        f"Wang et al. 2004; {_C}, diversity",
        "similarity.ssim",
        unit="[-1, 1]",
        title="SSIM between samples",
    )
    yield row(
        "ms_ssim",
        False,
        "Multi-scale structural similarity of the samples of one prompt, mean over pairs; lower is more diverse.",
        f"Wang et al. 2003, Eq. 7; {_C}, diversity",
        "similarity.ms_ssim",
        title="MS-SSIM between samples",
    )
    yield row(
        "band_power_ratio",
        None,
        "Power at high spatial frequencies over that of real images: 1 is as sharp as real, below 1 is blurred.",
        "xgem",
        "spectrum.band_ratio",
        unit=">= 0, target 1",
        title="band power / real",
    )


def _radiomics() -> Iterator[MetricSpec]:
    yield MetricSpec(
        "frd",
        ("fidelity",),
        False,
        "Frechet radiomics distance, version 1: logarithm of the Frechet distance of standardised radiomic features.",
        "any",
        "Konz, Osuala et al. 2025; CheXGenBench's repository",
        f"{_M}radiomics.frechet_radiomics",
        "FRD",
    )


def _text() -> Iterator[MetricSpec]:
    def row(name: str, doc: str, source: str, function: str, title: str = "", compat: str = "") -> MetricSpec:
        return MetricSpec(name, ("text",), True, doc, "[0, 1]", source, function, title, compat)

    papers = f"{_X}, Table 3; {_B} 2.4"
    for n in range(1, 5):
        yield row(
            f"bleu_{n}",
            f"Cumulative corpus BLEU of 1- to {n}-grams." if n > 1 else "Corpus BLEU of single words.",
            f"Papineni et al. 2002; {papers}",
            f"{_M}text.compare_bleu",
            f"BLEU-{n}",
        )
    yield row(
        "rouge_l", "F-measure of the longest common subsequence.", f"Lin 2004; {_B} 2.4", f"{_M}text.rouge_l", "ROUGE-L"
    )
    yield row(
        "meteor",
        "Recall-weighted F-measure of words with equal stems, less a penalty for their order; no synonyms.",
        "Banerjee and Lavie 2005",
        f"{_M}text.meteor",
        "METEOR",
    )
    for scope, classes, source in (
        ("14", "CheXpert's 14 classes", f"{_B} 2.4"),
        ("5", "CheXpert's 5 competition classes", f"{_B} 2.4"),
        ("10+", 'the ten classes of XGeM and "No Finding"', f"{_X} 3.5.2"),
        ("findings", 'the 13 findings ("No Finding" left out)', "xgem"),
    ):
        for mean in ("micro", "macro", "weighted"):
            yield row(
                f"{mean}_f1_{scope}",
                f"F1 of the labels of generated and real reports over {classes}, {mean} average.",
                source,
                f"{_M}classification.compare_f1_scores",
                f"{mean} F1, {scope}" if scope == "findings" else f"{mean} F1-{scope}",
                "uncertain='ignore' or 'negative' changes what an uncertain label counts as (default: positive).",
            )
    for name, doc in (
        ("simple", "entities alone"),
        ("partial", "entities, and whether they have relations"),
        ("complete", "entities and their relations"),
    ):
        yield row(
            f"radgraph_{name}",
            f"F1 of RadGraph's graph: {doc}.",
            f"Jain et al. 2021; {_X}; {_B} 2.4 (partial)",
            "xgem.judges.external_text.ExternalMetric",
            f"RadGraph-F1, {name}",
        )
    yield row(
        "ratescore",
        "F1 of type-weighted cosines of medical entities.",
        f"Zhao et al. 2024; {_X}",
        "xgem.judges.external_text.ExternalMetric",
        "RaTEScore",
    )
    for n in range(1, 5):
        yield MetricSpec(
            f"intra_study_bleu_{n}",
            ("text",),
            True,
            "BLEU of the generated reports of one study against each other.",
            source=f"{_X}, Table A2",
            function=f"{_M}text.intra_study_bleu",
            title=f"intra-study BLEU-{n}",
        )
    yield MetricSpec(
        "empty_reports", ("text",), False, "Share of generated reports that are empty.", title="share of empty reports"
    )


def _words() -> Iterator[MetricSpec]:
    yield MetricSpec(
        "codec_exact",
        ("text",),
        True,
        "Share of real reports that the report codec encodes and decodes to the same text.",
        function="xgem.eval.codec.evaluate_codec",
        title="codec, exact",
    )
    yield MetricSpec(
        "codec_word_f1",
        ("text",),
        True,
        "F1 of the words of real reports, encoded and decoded by the report codec.",
        function=f"{_M}text.word_f1",
        title="codec, word F1",
    )
    yield MetricSpec(
        "non_words",
        ("text",),
        False,
        "Share of reports with a word that no training report has.",
        function=f"{_M}text.unknown_words",
        title="reports with a word outside the training vocabulary",
    )
    for name, doc, unit, title in (
        (
            "perplexity",
            "Perplexity per word of reports under a trigram model of training reports; far below that of real reports "
            "they are stereotyped, above it they do not read like reports.",
            ">= 1, target that of real reports",
            "",
        ),
        (
            "perplexity_ratio",
            "Perplexity of generated reports over that of real ones.",
            "> 0, target 1",
            "perplexity / real",
        ),
    ):
        source, function = "Witten & Bell 1991; Chen & Goodman 1999", f"{_M}language.compare_perplexity"
        yield MetricSpec(name, ("text",), None, doc, unit, source, function, title)


def _consistency() -> Iterator[MetricSpec]:
    yield MetricSpec(
        "cosine",
        ("consistency",),
        True,
        "Cosine of two outputs of one request in the prompt encoders' space.",
        "[-1, 1]",
        f"{_X} 4.3, Eq. 5 and Table 7",
        f"{_M}consistency.compare_cosine",
        "cosine of two outputs",
    )
    yield MetricSpec(
        "hamming",
        ("consistency",),
        False,
        "Number of findings in which the image and the report of one request differ.",
        ">= 0, findings",
        f"{_X} 4.3, Fig. 5",
        f"{_M}consistency.compare_hamming",
        "Hamming distance of label sets",
    )
    yield MetricSpec(
        "own_image_rank",
        ("consistency",),
        True,
        "Share of other requests' images that are farther from an output than the image of its own request.",
        function=f"{_M}agreement.own_rank_scores",
        title="1 - rank of the own image",
    )


def _control() -> Iterator[MetricSpec]:
    overlap, contrast, rank = "spatial.overlaps", "spatial.contrasts", "correlation.compare_correlation"
    for name, title, unit, function, doc in (
        ("dice", "Dice", "[0, 1]", overlap, "Overlap of the requested mask with the structure a segmenter detects."),
        ("iou", "IoU", "[0, 1]", overlap, "Intersection over union of requested mask and detected structure."),
        ("contrast_to_ring", "", "[-1, 1]", contrast, "Mean grey level in a requested box minus that around it."),
        ("contrast_to_other_side", "", "[-1, 1]", contrast, "Mean grey level in a box minus that of its mirror image."),
        ("logit", "", "any", "spatial.responses", "Classifier's logit for the class of a requested box."),
        ("response", "", "any", "spatial.responses", "Fall of that logit when the requested box is blurred."),
        ("severity_spearman", "severity (Spearman)", "[-1, 1]", rank, "Requested against estimated severity."),
        ("sex_auroc", "sex (AUROC)", "[0, 1]", "auc.compare_auc", "Requested sex against a network's estimate."),
        ("age_pearson", "age (Pearson's r)", "[-1, 1]", rank, "Requested against estimated age."),
    ):
        yield MetricSpec(name, ("control",), True, doc, unit, "xgem", f"{_M}{function}", title)


def _prompts() -> Iterator[MetricSpec]:
    grey, family = ">= 0, grey levels of 255", "xgem.eval.families.prompts."
    for name, title, better, unit, function, doc in (
        (
            "asked_auroc",
            "finding shown (AUROC)",
            True,
            "[0, 1]",
            f"{_M}auc.auc",
            "A judge's score for a finding: images that were asked for it against images that were not.",
        ),
        (
            "asked_auroc_macro",
            "finding shown (AUROC), macro",
            True,
            "[0, 1]",
            f"{_M}auc.auc",
            "AUROC of asked findings, mean over findings.",
        ),
        (
            "asked_side",
            "on the asked side",
            True,
            "[0, 1]",
            "xgem.judges.sides.SideJudge",
            "Share of images whose finding a judge sees on the side that was asked for; 0.5 is chance.",
        ),
        (
            "asked_side_auroc",
            "left against right (AUROC)",
            True,
            "[0, 1]",
            f"{_M}auc.auc",
            "A judge's log odds of left: images asked for it on the left against on the right.",
        ),
        (
            "malformed",
            "malformed",
            False,
            "[0, 1]",
            "xgem.judges.malformed.beyond_any",
            "Share of images farther from real ones than 99 % of held-out real images are.",
        ),
        (
            "text_effect",
            "effect of the text",
            True,
            grey,
            f"{family}effects",
            "Mean absolute difference of images of two sentences from the same noise.",
        ),
        (
            "seed_effect",
            "effect of the seed",
            None,
            grey,
            f"{family}effects",
            "Mean absolute difference of images of one sentence from different noise.",
        ),
        (
            "text_over_seed",
            "effect of the text / of the seed",
            True,
            ">= 0",
            f"{family}effects",
            "Effect of the text over that of the seed: 0 where a model ignores the text.",
        ),
    ):
        yield MetricSpec(name, ("prompts",), better, doc, unit, "xgem", function, title)


def rows() -> Iterator[MetricSpec]:
    """The metrics of this module."""
    for part in (_agreement, _fidelity, _radiomics, _text, _words, _consistency, _control, _prompts):
        yield from part()
