"""The detector and the classifier from `transformers`, with tiny random weights: the mechanics, not the findings."""

from __future__ import annotations

import json
import string
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bagel_mot.errors import EvaluationError, SettingError
from bagel_mot.evaluation.judges.base import Classifier, Detector
from bagel_mot.evaluation.judges.coco import COCO_CLASSES, class_names
from bagel_mot.evaluation.judges.detector import ClipClassifier, Mask2FormerDetector, instances

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def detector_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("scipy")
    folder = tmp_path_factory.mktemp("mask2former")
    torch.manual_seed(0)
    backbone = transformers.SwinConfig(
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=32,
        num_queries=7,
        num_labels=80,
    )
    transformers.Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    processor = {
        "image_processor_type": "Mask2FormerImageProcessor",
        "size": {"shortest_edge": 64, "longest_edge": 96},
        "size_divisor": 32,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def classifier_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    letters = [*string.ascii_lowercase, *"-"]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters), "re"]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\nr e\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}), encoding="utf-8"
    )
    width = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={**width, "vocab_size": len(tokens), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1},
        vision_config={**width, "image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 32, "width": 32},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def image() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def test_detections_are_things_of_the_image(detector_folder: Path, image: Image.Image) -> None:
    detector: Detector = Mask2FormerDetector(detector_folder, "cpu")
    found = detector.detect(image)
    assert found
    assert [thing.score for thing in found] == sorted((thing.score for thing in found), reverse=True)
    for thing in found:
        assert thing.label in COCO_CLASSES
        assert 0 < thing.score < 1
        assert thing.mask is not None
        assert thing.mask.shape == (40, 70)
        ys, xs = np.nonzero(thing.mask)
        assert thing.box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)


def test_instances_agree_with_a_loop_over_all_pairs() -> None:
    generator = torch.Generator().manual_seed(1)
    classes, masks = torch.randn(5, 4, generator=generator), torch.randn(5, 6, 9, generator=generator)
    masks[2] = -1.0  # a query without a pixel
    names = ("a", "b", "c")
    expected = []
    for query in range(5):
        inside = masks[query] > 0
        if not inside.any():
            continue
        probabilities = classes[query].exp() / classes[query].exp().sum()
        certainty = float((1 / (1 + (-masks[query]).exp()))[inside].mean())
        expected += [(names[k], float(probabilities[k]) * certainty, query) for k in range(3)]
    expected.sort(key=lambda pair: -pair[1])
    found = instances(classes, masks, names)
    assert [thing.label for thing in found] == [name for name, _, _ in expected]
    assert [thing.score for thing in found] == pytest.approx([score for _, score, _ in expected], rel=1e-5)
    for thing, (_, _, query) in zip(found, expected, strict=True):
        assert np.array_equal(thing.mask, (masks[query] > 0).numpy())


def test_instances_are_limited_by_the_probability_of_the_class() -> None:
    classes = torch.tensor([[3.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    masks = torch.tensor([[[0.1, -1.0]], [[9.0, 9.0]]])
    (only,) = instances(classes, masks, ("a", "b"), limit=1)
    assert only.box == (0.0, 0.0, 1.0, 1.0)


@pytest.mark.parametrize("names", [("mouse", "remote", "keyboard"), ("motorbike", "sofa", "tvmonitor")])
def test_other_lists_names_become_geneval_s(names: tuple[str, ...]) -> None:
    ours = {
        "mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard",
        "motorbike": "motorcycle", "sofa": "couch", "tvmonitor": "tv",
    }  # fmt: skip
    labels = {i: next((n for n in names if ours[n] == name), name) for i, name in enumerate(COCO_CLASSES)}
    assert class_names(labels) == COCO_CLASSES


def test_labels_without_a_meaning_are_coco_s_order() -> None:
    assert class_names({number: f"LABEL_{number}" for number in range(80)}) == COCO_CLASSES
    assert COCO_CLASSES.index("clock") == 74


@pytest.mark.parametrize("labels", [{0: "person"}, {0: "LABEL_0"}, {i: f"thing {i}" for i in range(80)}])
def test_a_detector_of_other_classes_is_refused(labels: dict[int, str]) -> None:
    with pytest.raises(SettingError, match=f"has {len(labels)} classes, which lack .*80 classes is needed"):
        class_names(labels)


def test_probabilities_are_softmax_over_the_mean_of_templates(classifier_folder: Path, image: Image.Image) -> None:
    classifier: Classifier = ClipClassifier(classifier_folder, "cpu")
    texts = [("a red kite", "a red thing"), ("a blue kite", "a blue thing"), ("green", "a green object")]
    found = classifier.probabilities([image, image.rotate(90, expand=True)], texts)
    assert found.shape == (2, 3)
    assert found.sum(1) == pytest.approx([1.0, 1.0])
    model = transformers.CLIPModel.from_pretrained(classifier_folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(classifier_folder)
    processor = transformers.AutoImageProcessor.from_pretrained(classifier_folder)
    with torch.inference_mode():
        seen = model.get_image_features(**processor(images=image, return_tensors="pt"))
        seen = getattr(seen, "pooler_output", seen)[0]
        logits = []
        for templates in texts:
            total = torch.zeros(8)
            for text in templates:
                one = model.get_text_features(**tokenizer(text, return_tensors="pt"))
                one = getattr(one, "pooler_output", one)[0]
                total += one / one.norm()
            logits.append(float(model.logit_scale.exp() * torch.cosine_similarity(seen, total, dim=0)))
    assert found[0] == pytest.approx(torch.tensor(logits).softmax(0).numpy(), rel=1e-4)


def test_no_images_have_no_probabilities(classifier_folder: Path) -> None:
    assert ClipClassifier(classifier_folder, "cpu").probabilities([], [("a",), ("b",)]).shape == (0, 2)


@pytest.mark.parametrize("kind", [Mask2FormerDetector, ClipClassifier])
def test_a_folder_without_a_model_is_one_sentence(kind: type, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="cannot be loaded as") as refused:
        kind(tmp_path, "cpu")
    assert "\n" not in str(refused.value)
