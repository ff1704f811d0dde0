from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xgem.data.sets import EvalSet, Item
from xgem.judges.judge import prevalence_thresholds, scores_of, thresholds_of, train_judge
from xgem.judges.xrv import XRV_MODELS, load_xrv
from xgem.labels.vocabulary import CHEXPERT_CLASSES
from xgem.metrics.auc import FEWEST, auc, auc_scores, compare_auc_scores
from xgem.metrics.bootstrap import Array, Bootstrap, derangements
from xgem.metrics.correlation import compare_pearson, pearson
from xgem.types import CheckpointError, InputError, NotComputed


def _scored(n: int = 150, classes: int = 4, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, classes)) < [0.15, 0.3, 0.5, 0.7]).astype(float)
    scores = np.round(labels + rng.normal(size=labels.shape), 1)  # with ties
    return scores, labels


@pytest.mark.parametrize("average", ["micro", "macro", "weighted"])
def test_auc_against_scikit_learn(average: str) -> None:
    from sklearn.metrics import roc_auc_score

    scores, labels = _scored()
    bootstrap = Bootstrap(150, draws=8)
    found = auc_scores(scores, labels, bootstrap)[average]
    assert found.value == pytest.approx(roc_auc_score(labels, scores, average=average))
    assert getattr(compare_auc_scores(scores, labels, bootstrap), average).matched.value == pytest.approx(found.value)
    # A bootstrap draw is scikit-learn's value on the drawn studies
    drawn = np.repeat(np.arange(150), bootstrap.weights[5].astype(int))
    assert found.draws[4] == pytest.approx(roc_auc_score(labels[drawn], scores[drawn], average=average))


def test_each_class_is_scored_only_where_its_label_is_defined() -> None:
    from sklearn.metrics import roc_auc_score

    scores, labels = _scored()
    hidden = np.random.default_rng(1).random(labels.shape) < 0.4
    marked = np.where(hidden, np.nan, labels)
    found = compare_auc_scores(scores, marked, Bootstrap(150, draws=5))
    for k, one in enumerate(found.by_class):
        assert not isinstance(one, str)
        own = ~hidden[:, k]
        assert one.matched.value == pytest.approx(roc_auc_score(labels[own, k], scores[own, k]))
    assert found.micro.matched.value == pytest.approx(roc_auc_score(labels[~hidden], scores[~hidden]))


def test_a_class_with_one_kind_of_label_has_a_reason_and_no_auc() -> None:
    scores, labels = _scored()
    labels[:, 1] = np.where(labels[:, 1] == 0, np.nan, labels[:, 1])
    found = compare_auc_scores(scores, labels, Bootstrap(150, draws=5))
    assert isinstance(found.by_class[1], str)
    assert "0 negatives" in found.by_class[1]
    others = [one.matched.value for one in found.by_class if not isinstance(one, str)]
    assert found.macro.matched.value == pytest.approx(np.mean(others))
    with pytest.raises(InputError, match="needs both"):
        auc(scores[:, 1], labels[:, 1], Bootstrap(150, draws=5))
    with pytest.raises(InputError, match="none with 5 positives and negatives"):
        compare_auc_scores(scores[:, 1:2], labels[:, 1:2], Bootstrap(150, draws=5))


def test_a_class_with_few_positives_has_no_auc_and_no_part_in_the_means() -> None:
    scores, labels = _scored()
    labels[:, 1] = 0
    labels[: FEWEST - 1, 1] = 1
    found = compare_auc_scores(scores, labels, Bootstrap(150, draws=5))
    assert found.by_class[1] == "4 positives and 146 negatives: an AUROC needs at least 5 of each"
    others = [0, 2, 3]
    for means in ({"macro": found.macro.matched}, auc_scores(scores, labels, Bootstrap(150, draws=5))):
        assert means["macro"].value == pytest.approx(
            auc_scores(scores[:, others], labels[:, others], Bootstrap(150, draws=5))["macro"].value
        )
    labels[FEWEST - 1, 1] = 1
    assert not isinstance(compare_auc_scores(scores, labels, Bootstrap(150, draws=5)).by_class[1], str)


def test_swapped_images_lose_auc_and_correlation_clear_of_zero() -> None:
    scores, labels = _scored()
    bootstrap = Bootstrap(150, draws=200)
    own = compare_auc_scores(scores, labels, bootstrap)
    assert all(one.difference.estimate().above_zero for one in (own.micro, own.macro, own.weighted))
    order = derangements(150, 1)[0]
    swapped = compare_auc_scores(scores[order], labels, bootstrap)
    assert not any(one.difference.estimate().above_zero for one in (swapped.micro, swapped.macro, swapped.weighted))
    lost = (own.macro.matched - swapped.macro.matched).estimate()
    assert lost.low > 0.1
    generated = scores + np.random.default_rng(2).normal(size=scores.shape)
    assert compare_pearson(scores, generated, bootstrap).difference.estimate().low > 0.3
    assert not compare_pearson(scores, generated[order], bootstrap).difference.estimate().low > 0.05


def test_pearson_against_scipy() -> None:
    from scipy.stats import pearsonr

    first, second = _scored(seed=3)
    first += [0, 5, 10, 1000]
    bootstrap = Bootstrap(150, draws=6)
    pooled = pearson(first, second, bootstrap)
    assert pooled.value == pytest.approx(pearsonr(first.ravel(), second.ravel())[0])
    drawn = np.repeat(np.arange(150), bootstrap.weights[3].astype(int))
    assert pooled.draws[2] == pytest.approx(pearsonr(first[drawn].ravel(), second[drawn].ravel())[0])
    single = pearson(first[:, 3], second[:, 3], bootstrap)
    assert single.value == pytest.approx(pearsonr(first[:, 3], second[:, 3])[0])


def test_pooled_correlation_of_unrelated_images_is_high_where_classes_differ() -> None:
    rng = np.random.default_rng(4)
    rates = np.array([0.1, 0.3, 0.6, 0.9])
    real, generated = (rates + 0.05 * rng.normal(size=(100, 4)) for _ in range(2))
    pooled = compare_pearson(real, generated, Bootstrap(100, draws=100))
    assert pooled.matched.value > 0.95
    assert pooled.shuffled.value == pytest.approx(pooled.matched.value, abs=0.01)
    assert abs(compare_pearson(real[:, 0], generated[:, 0], Bootstrap(100, draws=5)).matched.value) < 0.3


def test_pearson_of_a_constant_is_not_defined_and_of_itself_is_one() -> None:
    first, _ = _scored()
    bootstrap = Bootstrap(150, draws=5)
    assert np.isnan(pearson(first, np.full_like(first, 0.3), bootstrap).value)
    assert pearson(first, 3 * first + 2, bootstrap).value == pytest.approx(1)
    assert pearson(first, -first, bootstrap).value == pytest.approx(-1)


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_scores_know_no_order_and_no_copies(seed: int) -> None:
    scores, labels = _scored(40, seed=seed)
    labels[:FEWEST], labels[FEWEST : 2 * FEWEST] = 0, 1
    order = np.random.default_rng(seed).permutation(40)
    twice = np.r_[order, order]
    for measure in (lambda s, y, b: auc_scores(s, y, b)["macro"].value, lambda s, y, b: pearson(s, y, b).value):
        own = measure(scores, labels, Bootstrap(40, draws=1))
        assert measure(scores[order], labels[order], Bootstrap(40, draws=1)) == pytest.approx(own)
        assert measure(scores[twice], labels[twice], Bootstrap(80, draws=1)) == pytest.approx(own)


def test_thresholds_call_as_many_positive_as_are_labelled() -> None:
    scores = np.random.default_rng(0).random((200, 2))
    labels = np.zeros((200, 2))
    labels[:30, 0] = labels[:120, 1] = 1
    labels[190:, 0] = np.nan
    called = scores > prevalence_thresholds(scores, labels)
    assert called.sum(axis=0).tolist() == pytest.approx([200 * 30 / 190, 120], abs=1)


def _images(folder: Path, n: int, seed: int) -> EvalSet:
    """Images that show Edema as a bright half and Fracture as a dark one; Pneumonia is never denied."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    items: list[Item] = []
    for k in range(n):
        edema, fracture = rng.random(2) < 0.5
        image = rng.integers(60, 120, (32, 32))
        image[:, :16] += 100 * int(edema)
        image[16:] -= 55 * int(fracture)
        np.save(folder / f"{k:03}.npy", image.astype(np.uint8))
        labels = {"Edema": float(edema), "Fracture": float(fracture), "Pneumonia": 1.0}
        items.append(Item(f"{k}", folder / f"{k:03}.npy", labels=labels))
    items[0] = Item("0", items[0].file, labels={"Edema": -1.0, "Fracture": 1.0})
    return EvalSet(folder.name, tuple(items))


def test_the_own_judge_learns_planted_findings_and_is_kept(tmp_path: Path) -> None:
    from xgem.judges.classifier import ClassifierConfig

    training, held_out = _images(tmp_path / "train", 160, 0), _images(tmp_path / "test", 60, 1)
    config = ClassifierConfig(size=32, width=8, epochs=6, batch_size=16)
    judge = train_judge(training, config=config, folder=tmp_path / "judges")
    assert judge.name == "xgem-classifier"
    assert judge.classes == ("Edema", "Fracture")  # Pneumonia has no negatives
    labels = held_out.labels(judge.classes)
    labels[labels == -1] = np.nan
    scores = scores_of(judge, held_out)
    assert 0 <= scores.min() <= scores.max() <= 1
    assert auc_scores(scores, labels, Bootstrap(60, draws=5))["macro"].value > 0.9
    kept = train_judge(training, config=config, folder=tmp_path / "judges")
    assert kept.weights == judge.weights
    np.testing.assert_array_equal(thresholds_of(kept), thresholds_of(judge))


def test_a_judge_needs_positives_and_negatives(tmp_path: Path) -> None:
    found = _images(tmp_path / "set", 4, 0)
    blank = EvalSet("blank", tuple(Item(item.id, item.file) for item in found.items))
    with pytest.raises(NotComputed, match="no CheXpert class"):
        train_judge(blank)


class _Short:
    name, weights, size, classes = "short", "", 32, ("Edema", "Fracture")

    def scores(self, images):
        return np.zeros((len(images), 1))


def test_a_judge_that_gives_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"short: scores of shape \(4, 1\)"):
        scores_of(_Short(), _images(tmp_path / "set", 4, 0))
    assert thresholds_of(_Short()).tolist() == [0.5, 0.5]


def test_xrv_reads_its_published_form_and_a_state_dict_alike(tmp_path: Path) -> None:
    import torch
    import torchxrayvision as xrv
    from safetensors.torch import save_file

    torch.manual_seed(0)
    network = xrv.models.DenseNet(num_classes=18).eval()
    torch.save(network, tmp_path / "published.pt")
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, tmp_path / "state.safetensors")
    images = np.random.default_rng(0).integers(0, 256, (3, 224, 224), dtype=np.uint8)
    judge = load_xrv(tmp_path / "published.pt", "mimic_ch")
    assert set(judge.classes) <= set(CHEXPERT_CLASSES)
    assert len(judge.classes) == 11
    found = judge.scores(images)
    other = load_xrv(tmp_path / "state.safetensors", "mimic_ch")
    np.testing.assert_array_equal(other.scores(images), found)
    assert other.weights == judge.weights
    # The package's own numbers: its input range and its operating points
    network.op_threshs = torch.tensor(xrv.models.model_urls["densenet121-res224-mimic_ch"]["op_threshs"])
    x = torch.from_numpy(xrv.datasets.normalize(images.astype(np.float32), 255))[:, None]
    with torch.no_grad():
        theirs = network(x).numpy()
    kept = [k for k, name in enumerate(xrv.models.model_urls["densenet121-res224-mimic_ch"]["labels"]) if name]
    np.testing.assert_allclose(found, theirs[:, kept], atol=1e-5)


def test_xrv_without_weights_or_with_others_is_not_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    with pytest.raises(NotComputed, match="no weights"):
        load_xrv(None)
    with pytest.raises(NotComputed, match=r"none\.pt"):
        load_xrv(tmp_path / "none.pt")
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="other weights than"):
        load_xrv(tmp_path / "other.pt")
    torch.save(_Short(), tmp_path / "harmful.pt")
    with pytest.raises(CheckpointError, match="without running the file's code"):
        load_xrv(tmp_path / "harmful.pt")
    with pytest.raises(InputError, match=", ".join(XRV_MODELS)):
        load_xrv(tmp_path / "other.pt", "best")


def test_a_judge_brings_images_of_any_size_to_its_own(tmp_path: Path) -> None:
    from xgem.judges.classifier import ClassifierConfig

    training = _images(tmp_path / "train", 16, 0)
    judge = train_judge(training, config=ClassifierConfig(size=16, width=4, epochs=1, batch_size=8))
    small = training.images(16)
    np.testing.assert_allclose(judge.scores(training.images()), judge.scores(small), atol=1e-3)
    large = np.kron(small, np.ones((1, 5, 5), np.uint8))
    np.testing.assert_allclose(judge.scores(large), judge.scores(small), atol=1e-9)
    np.save(tmp_path / "wide.npy", np.pad(large[0], ((0, 0), (0, 7)), mode="edge"))
    mixed = EvalSet("mixed", (training.items[0], Item("wide", tmp_path / "wide.npy")), pad=True)
    assert scores_of(judge, mixed).shape == (2, 2)
