"""Writes what ComfyUI shows of the nodes in words: their names in Chinese, and the pages of help in both languages.

    python tools/comfyui_texts.py

It writes locales/zh/nodeDefs.json and integrations/comfyui/web/docs. English comes from the nodes themselves, the texts
of settings from the package; what is below is the rest. A test compares the files with what this makes.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
LOCALES = ROOT / "locales" / "zh" / "nodeDefs.json"
DOCS = ROOT / "integrations" / "comfyui" / "web" / "docs"


class NodeText(NamedTuple):
    """The texts of a node.

    Attributes:
        help: what its page says beside its description and the tables.
        zh, zh_about, zh_help: its name, description and the same in Chinese.
    """

    help: str
    zh: str
    zh_about: str
    zh_help: str


NODES: dict[str, NodeText] = {
    "BagelLoad": NodeText(
        "The list has `mini`, a small model that is part of the pack, and every checkpoint in `models/bagel` (or in a "
        "folder that `extra_model_paths.yaml` names under `bagel`). A hub id, OWNER/NAME, is downloaded there on first "
        "use, with progress; Stop ends it, and the next run goes on where it was. Nothing is loaded before a node uses "
        "the model. On a GPU, ComfyUI's own models make room first, and BAGEL leaves when another model needs room.",
        "BAGEL 加载",
        "选择一个 BAGEL 检查点。内存中只保留一个；ComfyUI 的“卸载模型”会释放它。",
        "列表里有节点包自带的小模型 `mini`，以及 `models/bagel`（或 `extra_model_paths.yaml` 中 `bagel` 一项所指的"
        "文件夹）里的全部检查点。hub 上的名字 OWNER/NAME 在第一次使用时下载到那里，并显示进度；按停止可中断，"
        "下次接着下载。"
        "有节点用到时模型才会加载。在 GPU 上，ComfyUI 自己的模型会先让出空间；别的模型需要空间时，BAGEL 也会让出。",
    ),
    "BagelGenerate": NodeText(
        "The prompt is read once, however many pictures are drawn. Picture i is the one that seed + i gives alone.",
        "BAGEL 文生图",
        "按文字画图。画多张时，种子从给定的数依次加一。",
        "无论画几张，提示词只读一遍。第 i 张图就是单独用“种子 + i”画出的那张。",
    ),
    "BagelEdit": NodeText(
        "A batch makes one new picture from all of its pictures, or each is edited by itself. References of different "
        "sizes go into sockets of their own. Use Editing Settings, whose defaults are those of edits.",
        "BAGEL 编辑",
        "按文字修改图像：一批图可以逐张修改，也可以合成一张新图。",
        "一批图像可以合成一张新图，也可以逐张编辑。尺寸不同的参考图请接到各自的插口。请配合“编辑设置”，其默认值适合编辑。",
    ),
    "BagelAsk": NodeText(
        "All pictures of all sockets belong to the question. Answers are the likeliest ones, so another seed changes "
        "nothing unless `do_sample` of Answer Settings is on.",
        "BAGEL 提问",
        "回答关于一批图像的问题，也可以不给图像。",
        "各插口的全部图像都属于这个问题。默认取最可能的回答，所以除非打开“回答设置”里的 `do_sample`，"
        "换种子不会改变结果。",
    ),
    "BagelThinkAndDraw": NodeText(
        "The thoughts are shown on the node while they are written. With pictures it is an edit. `max_think_tokens` of "
        "the settings limits the thoughts.",
        "BAGEL 思考后画图",
        "先就文字（以及图像，如果有）用文字思考，再画图。",
        "思考的内容会随写随显示在节点上。给了图像时就是编辑。设置中的 `max_think_tokens` 限制思考的长度。",
    ),
    "BagelThinkAndAnswer": NodeText(
        "The thoughts are shown on the node while they are written; `max_new_tokens` of the settings limits them and "
        "the answer together.",
        "BAGEL 思考后回答",
        "先就问题（以及图像，如果有）用文字思考，再回答。",
        "思考的内容会随写随显示在节点上。设置中的 `max_new_tokens` 限制思考与回答的总长度。",
    ),
    "BagelDrawingSettings": NodeText(
        "Connect it to Text to Image, Think and Draw, or Session: Draw. Every value on it applies, also those that the "
        "checkpoint would choose otherwise.",
        "BAGEL 画图设置",
        "画图的设置。所示的值全部生效；不接此节点时用检查点自己的设置。",
        "接到“文生图”“思考后画图”或“会话：画图”。节点上的每个值都会生效，包括检查点原本另有默认的。",
    ),
    "BagelEditingSettings": NodeText(
        "Connect it to Edit, and wherever a picture is given. The settings are those of drawing, with the defaults of "
        "edits.",
        "BAGEL 编辑设置",
        "编辑的设置。所示的值全部生效；不接此节点时用检查点自己的设置。",
        "接到“编辑”，以及一切给了图像的节点。设置与画图的相同，默认值则是编辑的。",
    ),
    "BagelAnswerSettings": NodeText(
        "Connect it to Ask, Think and Answer, or Session: Answer.",
        "BAGEL 回答设置",
        "回答的设置。所示的值全部生效；不接此节点时用检查点自己的设置。",
        "接到“提问”“思考后回答”或“会话：回答”。",
    ),
    "BagelSessionNew": NodeText(
        "No node changes the session that goes into it, so one session can be continued in several ways at once. It "
        "keeps what it has read; only after its model was unloaded it reads that again.",
        "BAGEL 会话",
        "开始一段由文字和图像组成的会话；读过的内容逐轮保留。",
        "任何节点都不会改动传入的会话，所以同一段会话可以同时以几种方式继续。读过的内容会保留；只有模型被卸载后才会重读。",
    ),
    "BagelSessionAddText": NodeText(
        "The model reads the text; nothing is written or drawn before a node asks for it.",
        "BAGEL 会话：添加文字",
        "向会话添加一段文字。",
        "模型读入这段文字；在有节点要求之前，不会作答也不会画图。",
    ),
    "BagelSessionAddImage": NodeText(
        "The pictures of a batch are read in their order.",
        "BAGEL 会话：添加图像",
        "把一批图像依次添加到会话。",
        "一批图像按顺序读入。",
    ),
    "BagelSessionDraw": NodeText(
        "The picture becomes a part of the session that comes out, so the next text can refer to it. Use Editing "
        "Settings once there is a picture in the session.",
        "BAGEL 会话：画图",
        "画出会话接下来的图像，并使它成为会话的一部分。",
        "画出的图像会成为输出会话的一部分，接下来的文字可以提到它。会话里已有图像时，请用“编辑设置”。",
    ),
    "BagelSessionAnswer": NodeText(
        "The answer becomes a part of the session that comes out.",
        "BAGEL 会话：回答",
        "写出会话接下来的回答，并使它成为会话的一部分。",
        "回答会成为输出会话的一部分。",
    ),
}

_REFERENCE = "一张图或一批图，尺寸不限。"
INPUTS: dict[str, tuple[str, str]] = {
    "checkpoint": ("检查点", "mini（自带）、models/bagel 里的检查点，或官方权重（29 GB，会下载到那里）。"),
    "device": ("设备", "auto：可用的最好的设备。"),
    "precision": ("精度", "auto：放得下的最快的一种；小检查点用 float32 或 bfloat16。"),
    "other": ("其他检查点", "文件夹、其中的权重文件，或 hub 上的名字；不为空时代替列表。"),
    "offload": ("卸载位置", "设备放不下的层放在哪里：主内存、硬盘，或不放。"),
    "memory": ("显存上限", "GPU 上最多使用的显存，例如 12GB。"),
    "tasks": ("任务", "模型的用途：只回答时省去近一半的权重，只按文字画图时省去图像编码器。"),
    "compile": ("编译", "编译各层：每种任务的第一次运行需要几分钟，之后更快。"),
    "prefer": ("偏好", "精度为 auto 且有几种方式都放得下时，按什么来选：质量、速度或内存。"),
    "model": ("模型", "来自“BAGEL 加载”。"),
    "prompt": ("提示词", "要画什么；有图像时，要怎么处理图像。"),
    "instruction": ("指令", "要怎么处理图像。"),
    "question": ("问题", "要问的问题。"),
    "text": ("文字", "要说的话。"),
    "seed": ("种子", "相同的种子给出相同的结果。下方的控件决定每次运行后是否改变。"),
    "count": ("数量", "图像张数，作为一批画出。"),
    "batch": ("批次", "怎么处理几张图像。逐张处理时，每张都用同一个种子。"),
    "settings": ("设置", "来自设置节点；默认用检查点自己的设置。"),
    "images": ("图像", _REFERENCE),
    "images_2": ("图像 2", _REFERENCE),
    "images_3": ("图像 3", _REFERENCE),
    "images_4": ("图像 4", _REFERENCE),
    "session": ("会话", "一段会话；它保持原样，也可以以别的方式继续。"),
    "think": ("先思考", "每次画图和回答之前，先用文字思考。"),
    "understanding": ("只看不画", "图像只用来提问，从不画图；这样占用的词元减半。"),
}
OUTPUTS: dict[str, tuple[str, str]] = {
    "model": ("模型", "检查点，供其他节点使用。"),
    "images": ("图像", "画出的图像。"),
    "answer": ("回答", "回答的文字。"),
    "thinking": ("思考", "在此之前的思考。"),
    "session": ("会话", "到此为止的会话。"),
    "settings": ("设置", "设置，供画图或回答的节点使用。"),
}
_ENDS = {"low": "低端", "high": "高端"}
_SIZES = {"width": "宽", "height": "高"}


def chinese_input(name: str) -> tuple[str, str]:
    """The Chinese name and tooltip of an input: of a setting where it is one."""
    from bagel_mot.app.texts.settings import SETTING_TEXTS

    if name in INPUTS:
        return INPUTS[name]
    stem, _, end = name.rpartition("_")
    if name in _SIZES:
        text, title = SETTING_TEXTS["size"], _SIZES[name]
        return title, f"{text.about}{text.when}两者都为 0：用默认值。"
    if end in _ENDS and stem in SETTING_TEXTS:
        text = SETTING_TEXTS[stem]
        return f"{text.zh}（{_ENDS[end]}）", text.about + text.when
    text = SETTING_TEXTS[name]
    return text.zh, text.about + text.when


def locale(nodes: Mapping[str, Any]) -> dict[str, Any]:
    """The Chinese names and tooltips of all nodes, in ComfyUI's layout."""
    found: dict[str, Any] = {}
    for name, node in nodes.items():
        outputs = [OUTPUTS[each] for each in node.RETURN_NAMES]
        found[name] = {
            "display_name": NODES[name].zh,
            "description": NODES[name].zh_about,
            "inputs": {each: dict(zip(("name", "tooltip"), chinese_input(each), strict=True)) for each in inputs(node)},
            "outputs": {
                str(number): {"name": title, "tooltip": about} for number, (title, about) in enumerate(outputs)
            },
        }
    return found


def inputs(node: Any) -> dict[str, str]:
    """The inputs of a node with their tooltips."""
    types = node.INPUT_TYPES()
    return {name: spec[1]["tooltip"] for name, spec in {**types["required"], **types.get("optional", {})}.items()}


def pages(nodes: Mapping[str, Any], titles: Mapping[str, str]) -> dict[str, str]:
    """The pages of help by their path below docs."""
    found: dict[str, str] = {}
    for name, node in nodes.items():
        text = NODES[name]
        outputs = zip(node.RETURN_NAMES, node.OUTPUT_TOOLTIPS, strict=True)
        found[f"{name}.md"] = _page(
            titles[name],
            [node.DESCRIPTION, text.help],
            ": ",
            ("Inputs", [(f"`{each}`", about) for each, about in inputs(node).items()]),
            ("Outputs", [(f"`{each}`", about) for each, about in outputs]),
        )
        given = [(each, *chinese_input(each)) for each in inputs(node)]
        made = [(each, *OUTPUTS[each]) for each in node.RETURN_NAMES]
        found[f"{name}/zh.md"] = _page(
            text.zh,
            [text.zh_about, text.zh_help],
            "：",
            ("输入", [(f"{title}（`{each}`）", about) for each, title, about in given]),
            ("输出", [(f"{title}（`{each}`）", about) for each, title, about in made]),
        )
    return found


def _page(title: str, paragraphs: list[str], colon: str, *lists: tuple[str, list[tuple[str, str]]]) -> str:
    """A page: lists, since the panel that shows it is too narrow for tables."""
    parts = [f"# {title}", *paragraphs]
    for heading, rows in lists:
        parts += [f"## {heading}", "\n".join(f"- {name}{colon}{about}" for name, about in rows)]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Writes all files anew."""
    sys.path.insert(0, str(ROOT))
    pack = importlib.import_module("integrations.comfyui")
    LOCALES.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(locale(pack.NODE_CLASS_MAPPINGS), ensure_ascii=False, indent=2)
    LOCALES.write_text(text + "\n", encoding="utf-8")
    for path, page in pages(pack.NODE_CLASS_MAPPINGS, pack.NODE_DISPLAY_NAME_MAPPINGS).items():
        (DOCS / path).parent.mkdir(parents=True, exist_ok=True)
        (DOCS / path).write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
