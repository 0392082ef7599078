"""The 80 classes of COCO that detectors know, by the names that GenEval has for them."""

from __future__ import annotations

from collections.abc import Mapping

from bagel_mot.errors import SettingError

# The order is that of COCO's list of 80 classes, which detectors number from 0.
COCO_CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "computer mouse", "tv remote",
    "computer keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock",
    "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip

# Names that other lists have: COCO's own, of which GenEval changes three, and those of older detectors.
_OTHER_NAMES = {
    "mouse": "computer mouse",
    "remote": "tv remote",
    "keyboard": "computer keyboard",
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
    "hair dryer": "hair drier",
}


def class_names(labels: Mapping[int, str]) -> tuple[str, ...]:
    """GenEval's name of each class of a detector, in the detector's order.

    Args:
        labels: the detector's own names by number, as `id2label` of its configuration has them. Names such as LABEL_3,
            which say nothing, are taken for COCO's order.

    Raises: SettingError if the classes are not the 80 of COCO.
    """
    own = [labels[number] for number in sorted(labels)]
    if own == [f"LABEL_{number}" for number in range(len(COCO_CLASSES))]:
        return COCO_CLASSES
    names = tuple(_OTHER_NAMES.get(name, name) for name in own)
    if set(names) != set(COCO_CLASSES) or len(names) != len(COCO_CLASSES):
        missing = [name for name in COCO_CLASSES if name not in names]
        lacks = f", which lack {', '.join(missing[:3])}" if missing else ""
        raise SettingError(
            f"the detector has {len(own)} classes{lacks}; one for instances of COCO's 80 classes is needed, such as "
            "facebook/mask2former-swin-small-coco-instance"
        )
    return names
