"""Public data sets by name: how each lies on disk or the hub, what is made of it, and its licence.

What is marked `unsure` was not read in the data set itself: the columns are checked when it is opened, and those that
are missing are named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

GPT, GEMINI = "outputs of GPT-4o or GPT-Image: OpenAI's terms apply", "outputs of Gemini: Google's terms apply"


@dataclass(frozen=True)
class PublicData:
    """A public data set.

    Attributes:
        name: the name that `data.source` selects it by.
        where: its name on the hub.
        licence: its licence as far as it is known here; "?" where it is not. The card's own counts.
        layout: the files, in words.
        settings: the keys that it gives to a data section.
        notes: facts to know before training on it.
        unsure: whether its columns are from descriptions, and not from the data set.
    """

    name: str
    where: str
    licence: str
    layout: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: str = ""
    unsure: bool = False

    @property
    def task(self) -> str:
        """The kind of document that is made of its rows."""
        return str(self.settings["task"])

    @property
    def on_hub(self) -> bool:
        """Whether it can be read from the hub as it is, without downloading it first."""
        return bool(self.settings["kind"] == "hf")

    @property
    def download(self) -> str:
        """The command that downloads it."""
        return f"hf download {self.where} --repo-type dataset --local-dir {self.name}"


def _tars(caption: Any = None, **more: Any) -> dict[str, Any]:
    caption = {} if caption is None else {"caption": caption}
    return {"kind": "webdataset", "task": "t2i", **caption, **more}


def _pairs(before: str, after: str, instruction: Any, **more: Any) -> dict[str, Any]:
    return {
        "kind": "hf", "streaming": True, "task": "edit", "before": before, "after": after, "instruction": instruction,
        **more,
    }  # fmt: skip


_ALL = (
    PublicData(
        "blip3o-60k", "BLIP3o/BLIP3o-60k", "Apache-2.0", "tars of jpg + txt", _tars(),
        f"geneval_train.tar overlaps the style of GenEval's prompts: say so when reporting GenEval; {GPT}",
    ),
    PublicData(
        "blip3o-long-caption", "BLIP3o/BLIP3o-Pretrain-Long-Caption", "?", "tars of jpg + txt", _tars(),
        unsure=True,
    ),
    PublicData(
        "blip3o-short-caption", "BLIP3o/BLIP3o-Pretrain-Short-Caption", "?", "tars of jpg + txt", _tars(),
        unsure=True,
    ),
    PublicData(
        "text-to-image-2m", "jackyhate/text-to-image-2M", "MIT", "data_512_2M/*.tar of jpg + json",
        _tars("prompt", files=["data_512_2M/*.tar"]), "data.files: [data_1024_10K/*.tar] takes the larger images",
    ),
    PublicData(
        "dalle3-1m", "ProGamerGov/synthetic-dataset-1m-dalle3-high-quality-captions", "?",
        "data/data-*.tar of images + json", _tars(["short_caption", "long_caption"], files=["data/*.tar"]), GPT,
        unsure=True,
    ),
    PublicData(
        "sharegpt-4o-image", "FreedomIntelligence/ShareGPT-4o-Image", "Apache-2.0", "text_to_image.json + tars",
        {"kind": "json", "task": "t2i", "files": ["text_to_image.json"], "images": ["*.tar"], "image": "output_image",
         "caption": "input_prompt"}, GPT,
    ),
    PublicData(
        "sharegpt-4o-image-edit", "FreedomIntelligence/ShareGPT-4o-Image", "Apache-2.0",
        "text_and_image_to_image.json + tars",
        {"kind": "json", "task": "edit", "files": ["text_and_image_to_image.json"], "images": ["*.tar"],
         "before": "input_image", "after": "output_image", "instruction": "input_prompt"}, GPT,
    ),
    PublicData(
        "echo-4o-image", "Yejy53/Echo-4o-Image", "?", "JSONL + tars",
        {"kind": "jsonl", "task": "t2i", "images": ["**/*.tar"], "image": "output_image", "caption": "instruction"},
        GPT, unsure=True,
    ),
    PublicData(
        "echo-4o-image-edit", "Yejy53/Echo-4o-Image", "?", "JSONL + tars",
        {"kind": "jsonl", "task": "edit", "images": ["**/*.tar"], "before": "input_images", "after": "output_image",
         "instruction": "instruction"}, f"images made of several; {GPT}", unsure=True,
    ),
    PublicData(
        "opengpt-4o-image", "WINDop/OpenGPT-4o-Image", "?", "JSONL + tars",
        {"kind": "jsonl", "task": "t2i", "images": ["**/*.tar"], "image": "output_image", "caption": "input_prompt"},
        GPT, unsure=True,
    ),
    PublicData(
        "opengpt-4o-image-edit", "WINDop/OpenGPT-4o-Image", "?", "JSONL + tars",
        {"kind": "jsonl", "task": "edit", "images": ["**/*.tar"], "before": "input_image", "after": "output_image",
         "instruction": "input_prompt"}, GPT, unsure=True,
    ),
    PublicData(
        "omniedit", "TIGER-Lab/OmniEdit-Filtered-1.2M", "MIT", "Parquet with images",
        _pairs("src_img", "edited_img", "edited_prompt_list"), "one of the prompts is drawn each time",
    ),
    PublicData(
        "ultraedit", "BleachNick/UltraEdit_500k", "CC-BY-4.0", "Parquet with images",
        _pairs("source_image", "edited_image", "edit_prompt", split="FreeForm"), "data.split names the split",
    ),
    PublicData(
        "ultraedit-region", "BleachNick/UltraEdit_Region_Based_100k", "CC-BY-4.0", "Parquet with images and masks",
        _pairs("source_image", "edited_image", "edit_prompt", split="RegionBase"), "masks are not used",
    ),
    PublicData(
        "magicbrush", "osunlp/MagicBrush", "CC-BY-4.0", "Parquet with images and masks",
        {"kind": "hf", "streaming": True, "task": "session", "session_id": "img_id", "turn": "turn_index",
         "states": ["source_img[0]", "target_img[]"], "steps": "instruction"},
        "the turns of an image are a session; masks are not used",
    ),
    PublicData(
        "seed-data-edit", "AILab-CVC/SEED-Data-Edit-Part2-3", "CC-BY-NC-4.0",
        "multi_turn_editing/annotations/split_*.jsonl + images",
        {"kind": "jsonl", "task": "session", "files": ["multi_turn_editing/annotations/split_*.jsonl"],
         "images": ["multi_turn_editing/images"], "states": ["source_image", "edit_image_{}"],
         "steps": "instruction_{}", "inverse": "inverse_instruction_{}"},
        "half of the sessions are drawn backwards, by the inverse instructions; a few archives are known to be corrupt",
    ),
    PublicData(
        "imgedit", "sysuyy/ImgEdit", "Apache-2.0", "Parquet + split tars",
        {"kind": "parquet", "task": "edit", "files": ["Parquet/*.parquet"], "images": ["Singleturn/*.tar*"],
         "before": "input_images", "after": "output_images", "instruction": "prompt"},
        "rows of several turns belong to imgedit-multi-turn",
    ),
    PublicData(
        "imgedit-multi-turn", "sysuyy/ImgEdit", "Apache-2.0", "Parquet + split tars",
        {"kind": "parquet", "task": "session", "files": ["Parquet/*multi*.parquet"], "images": ["Multiturn/*.tar*"],
         "states": ["data[0].input_images[0]", "data[].output_images[0]"], "steps": "data[].prompt"},
    ),
    PublicData(
        "gpt-image-edit", "UCSC-VLAA/GPT-Image-Edit-1.5M", "CC-BY-4.0", "JSON files + folders of images",
        {"kind": "json", "task": "edit", "before": "input", "after": "output", "instruction": "instruction"},
        "put the JSON files of UCSC-VLAA/gpt-image-edit-training (training_json) into the folder, and name by "
        f"data.files one of them and by data.images its folder, such as gpt-edit/omniedit; {GPT}",
    ),
    PublicData(
        "pico-banana", "apple/pico-banana-400k", "CC-BY-NC-ND-4.0", "JSONL + images",
        {"kind": "jsonl", "task": "edit", "before": "local_input_image", "after": "output_image",
         "instruction": ["text", "summarized_text"]},
        "it is no set of the hub: download the JSONL, the Open Images inputs and the outputs by its instructions; "
        f"{GEMINI}",
    ),
    PublicData(
        "pico-banana-multi-turn", "apple/pico-banana-400k", "CC-BY-NC-ND-4.0", "JSONL + images",
        {"kind": "jsonl", "task": "session", "states": "files[].url", "steps": "turns[].text"},
        f"its images are addresses: data.urls: true fetches them; {GEMINI}", unsure=True,
    ),
    PublicData(
        "scaleedit", "InternVL-U/ScaleEdit-12M", "MIT", "Parquet with images, shards up to 31 GB",
        _pairs("source_image", "edited_image", "edit_instruction"),
    ),
    PublicData(
        "nhr-edit", "iitolstykh/NHR-Edit", "?", "Parquet with images",
        _pairs("source_image", "edited_image", "edit_prompt"), unsure=True,
    ),
    PublicData(
        "x2i", "yzwang/X2I-subject-driven", "?", "JSONL + tars",
        {"kind": "jsonl", "task": "edit", "images": ["**/*.tar"], "before": "input_images", "after": "output_image",
         "instruction": "instruction"}, "subjects in new scenes, of several given images", unsure=True,
    ),
    PublicData(
        "vqva-world", "VQVA/BAGEL-World-data", "CC-BY-4.0", "Parquet with images, a config for each part",
        {"kind": "hf", "streaming": True, "task": "think", "before": "images[0]", "after": "images[1]",
         "instruction": "qas.q", "thought": "think"},
        "data.config names the part, such as world_knowledge_uid_filtered; rows without a thought are pairs; the terms "
        "of OmniCorpus-CC apply", unsure=True,
    ),
    PublicData(
        "zebra-cot", "multimodal-reasoning-lab/Zebra-CoT", "CC-BY-NC-4.0", "Parquet with images, a config a domain",
        {"kind": "hf", "streaming": True, "task": "trace"}, "data.config names the domain",
    ),
    PublicData(
        "thinkmorph", "ThinkMorph/Jigsaw_Assembly", "?", "Parquet, converted for training",
        {"kind": "parquet", "task": "steps"},
        "converted rows have image_list, instruction_list and output_text_list; the other sets are Spatial_Navigation, "
        "Visual_Search and Chart_Refocus",
    ),
    PublicData(
        "llava-onevision", "lmms-lab/LLaVA-OneVision-Data", "mostly Apache-2.0, with the terms of its sources",
        "Parquet with images, a config a subset", {"kind": "hf", "streaming": True, "task": "chat"},
        "data.config names the subset",
    ),
    PublicData(
        "llava-next", "lmms-lab/LLaVA-NeXT-Data", "?", "Parquet with images",
        {"kind": "hf", "streaming": True, "task": "chat"},
    ),
    PublicData(
        "mmdu", "laolao77/MMDU", "CC-BY-NC-4.0", "mmdu-45k.json + mmdu-45k_pics.zip",
        {"kind": "json", "task": "chat", "files": ["mmdu-45k.json"], "images": ["mmdu-45k_pics.zip"], "human": ["user"],
         "gpt": ["assistant"], "image_mark": "<ImageHere>"}, f"several images a conversation; {GPT}",
    ),
    PublicData(
        "mammoth-vl", "MAmmoTH-VL/MAmmoTH-VL-Instruct-12M", "?", "JSON + archives of images and videos",
        {"kind": "json", "task": "chat", "images": [".", "**/*.zip", "**/*.tar"]}, unsure=True,
    ),
    PublicData(
        "bagel-example-lmms", "kcz358/bagel-example", "?", "Parquet with messages",
        {"kind": "hf", "task": "messages"}, "the example of lmms-engine", unsure=True,
    ),
)  # fmt: skip

PUBLIC_DATA: dict[str, PublicData] = {preset.name: preset for preset in _ALL}
"""Every public data set that has a name here."""
