"""Detectors of things in images, and recognisers of their color, from the `transformers` library (extra `eval`).

GenEval's own detector is Mask2Former (Swin-S) of mmdet 2. That of `transformers` has the same architecture and another
training run, so single boxes differ; thresholds and rules are the same. CLIP's weights are the same in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from bagel_mot.errors import EvaluationError
from bagel_mot.evaluation.judges.base import Detection
from bagel_mot.evaluation.judges.coco import class_names
from bagel_mot.installation import install_command

DETECTOR = "facebook/mask2former-swin-small-coco-instance"
CLASSIFIER = "openai/clip-vit-large-patch14"
_LIMIT = 100  # instances of an image, as the published scorer's configuration has it


class Mask2FormerDetector:
    """A detector of COCO's 80 classes, under GenEval's names for them, with a mask for each thing.

    Nothing is removed because it overlaps with something else: the published scorer's threshold for that is 1.

    Args:
        model: a folder, or an id of the Hugging Face Hub.
        device: the device it runs on; by default the GPU if there is one.
    """

    def __init__(self, model: str | Path = DETECTOR, device: str | torch.device | None = None) -> None:
        transformers = _transformers()
        self.device = _device(device)
        self._processor = _loaded(transformers.AutoImageProcessor, model)
        self._model = _loaded(transformers.Mask2FormerForUniversalSegmentation, model).to(self.device).eval()
        self._names = class_names(self._model.config.id2label)

    @torch.inference_mode()
    def detect(self, image: Image.Image) -> list[Detection]:
        """All things found, of any confidence: at most 100, the most confident first."""
        inputs = self._processor(images=image.convert("RGB"), return_tensors="pt").to(self.device)
        outputs = self._model(**inputs)
        valid = inputs.get("pixel_mask")
        inner = inputs["pixel_values"].shape[-2:]
        # Padding at the right and below belongs to no part of the image.
        used = inner if valid is None else (int(valid[0].any(1).sum()), int(valid[0].any(0).sum()))
        masks = F.interpolate(outputs.masks_queries_logits.float(), inner, mode="bilinear", align_corners=False)
        masks = F.interpolate(
            masks[:, :, : used[0], : used[1]], (image.height, image.width), mode="bilinear", align_corners=False
        )
        return instances(outputs.class_queries_logits[0].float(), masks[0], self._names)


def instances(
    class_logits: torch.Tensor, mask_logits: torch.Tensor, names: Sequence[str], limit: int = _LIMIT
) -> list[Detection]:
    """The things in Mask2Former's answer for one image.

    A query may count for several classes. A thing's confidence is the probability of its class times the mean
    probability of its mask's pixels; its box is the smallest around the mask. A thing without a pixel is left out.

    Args:
        class_logits: (queries, classes + 1) float, the last class being "nothing".
        mask_logits: (queries, height, width) float, at the size of the image.
        names: the classes' names.
        limit: the number of pairs of query and class that are considered, by probability.
    """
    probabilities = class_logits.softmax(-1)[:, :-1].flatten()
    best = probabilities.topk(min(limit, probabilities.numel()))
    found = []
    for probability, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        logits = mask_logits[index // len(names)]
        mask = logits > 0
        if not mask.any():
            continue
        ys, xs = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        box = (float(xs[0]), float(ys[0]), float(xs[-1] + 1), float(ys[-1] + 1))
        confidence = probability * logits[mask].sigmoid().mean().item()
        found.append(Detection(names[index % len(names)], confidence, box, mask.cpu().numpy()))
    return sorted(found, key=lambda thing: -thing.score)


class ClipClassifier:
    """CLIP as a classifier of images by texts, without training.

    The features of a text's templates are normalised, averaged and normalised again; the probability is the softmax
    over all texts of the scaled cosine between image and text.

    Args:
        model: a folder, or an id of the Hugging Face Hub.
        device: the device it runs on; by default the GPU if there is one.
    """

    def __init__(self, model: str | Path = CLASSIFIER, device: str | torch.device | None = None) -> None:
        transformers = _transformers()
        self.device = _device(device)
        self._images = _loaded(transformers.AutoImageProcessor, model)
        self._tokenizer = _loaded(transformers.AutoTokenizer, model)
        self._model = _loaded(transformers.CLIPModel, model).to(self.device).eval()
        self._text_features: dict[tuple[str, ...], torch.Tensor] = {}

    @torch.inference_mode()
    def probabilities(self, images: Sequence[Image.Image], texts: Sequence[Sequence[str]]) -> np.ndarray:
        """(images, texts) float: for each image the probability of each text. A text is several templates, averaged."""
        if not images:
            return np.zeros((0, len(texts)), np.float32)
        pixels = self._images(images=[image.convert("RGB") for image in images], return_tensors="pt")["pixel_values"]
        features = _normalised(_features(self._model.get_image_features(pixel_values=pixels.to(self.device))))
        text_features = torch.stack([self._features_of(tuple(templates)) for templates in texts])
        logits = self._model.logit_scale.exp() * features @ text_features.T
        return logits.float().softmax(-1).cpu().numpy()

    def _features_of(self, templates: tuple[str, ...]) -> torch.Tensor:
        """The features of a text, (width,) float, kept for the next image."""
        if templates not in self._text_features:
            tokens = self._tokenizer(list(templates), padding=True, truncation=True, return_tensors="pt")
            each = _normalised(_features(self._model.get_text_features(**tokens.to(self.device))))
            self._text_features[templates] = _normalised(each.mean(0))
        return self._text_features[templates]


def _normalised(features: torch.Tensor) -> torch.Tensor:
    """Features of length 1, (..., width) float."""
    return features / features.norm(dim=-1, keepdim=True)


def _features(output: Any) -> torch.Tensor:
    """The projected features, (rows, width) float, which some versions of the library put into an object."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output


def _device(device: str | torch.device | None) -> torch.device:
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise EvaluationError(f"detectors need transformers: {install_command('eval')}") from error
    return transformers


def _loaded(kind: Any, model: str | Path) -> Any:
    try:
        return kind.from_pretrained(str(model))
    except (OSError, ValueError, ImportError) as error:
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise EvaluationError(f"{model} cannot be loaded as {kind.__name__}: {said}") from error
