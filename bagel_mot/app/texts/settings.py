"""Names of the settings on the page, and in Chinese also what they do and when to change them.

The English for that is in `bagel_mot.inference.settings` itself.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SettingText:
    """The texts of one setting.

    Attributes:
        en, zh: its name.
        about, when: the Chinese for the fields of `Setting`.
    """

    en: str
    zh: str
    about: str
    when: str


SETTING_TEXTS: dict[str, SettingText] = {
    "cfg_text_scale": SettingText(
        "Text guidance", "文字引导",
        "图片紧跟文字的程度：背离“没有文字时的样子”；1 或更小为关闭。",
        "文字被忽略时调高；颜色与反差过硬时调低。",
    ),
    "cfg_image_scale": SettingText(
        "Picture guidance", "图片引导",
        "图片忠于所给图片的程度：背离“没有图片时的样子”；1 或更小为关闭。",
        "改得太多时调高；改得太少时调低。",
    ),
    "cfg_interval": SettingText(
        "Guidance interval", "引导区间",
        "引导生效的时段，从低端（不含）到高端；1 为纯噪声，0 为成图。",
        "低端调高则更快，细节也更自由；修改图片时用全程。",
    ),
    "cfg_renorm_type": SettingText(
        "Guidance renormalisation", "引导的归一方式",
        "引导后的速度按什么缩回原长：整张图、每个词元，或仅文字引导后的每个词元。",
        "修改图片用 text_channel；图片发糊时试试 global 或 channel。",
    ),
    "cfg_renorm_min": SettingText(
        "Minimum renormalisation", "归一下限",
        "引导后的速度最多缩短到几成；1 为不缩短。",
        "图片发白或发糊时调高。",
    ),
    "num_timesteps": SettingText(
        "Timesteps", "时间点数",
        "从噪声到成图的时间点；N 个点即 N − 1 步。",
        "求快时调低（25 往往够用）；求细节时调高。",
    ),
    "timestep_shift": SettingText(
        "Timestep shift", "时间偏移",
        "数值越高，越多步数用在接近纯噪声处；1 为均匀分布。",
        "布局不对时调高；细节不对时调低。",
    ),
    "eta": SettingText(
        "Fresh noise (eta)", "新噪声（eta）",
        "每一步把多少噪声换成新的：0 为不换（原始做法），1 为全换。",
        "东西缺少、重复或放错位置时调高：后面的步骤可以改正前面的错。",
    ),
    "enable_taylorseer": SettingText(
        "TaylorSeer", "TaylorSeer 加速",
        "后段每三步中有两步用外推代替计算；此时 eta 只作用于前三步。",
        "以少许质量换约两倍速度时打开；20 个时间点以上才明显。",
    ),
    "size": SettingText(
        "Size", "尺寸",
        "图片的宽与高；默认用模型自己的尺寸，修改时与最后一张图片相同。",
        "两者都须是潜在步长的倍数（官方模型为 16）。",
    ),
    "think": SettingText(
        "Think first", "先思考",
        "让模型在作画或回答之前写下思考。",
        "需要知识或规划时打开；会多花书写的时间。",
    ),
    "max_think_tokens": SettingText(
        "Maximum thinking tokens", "思考的词元上限",
        "作画之前思考最多写多少词元。",
        "想限制时间时调低；思考中断时调高。",
    ),
    "max_new_tokens": SettingText(
        "Maximum answer tokens", "回答的词元上限",
        "回答最多写多少词元，思考也算在内。",
        "想限制时间时调低；回答中断时调高。",
    ),
    "vit_min_size": SettingText(
        "Smallest side that is seen", "观看的最短边",
        "所给图片的短边先放大到这么多像素，模型再看；这时图片只缩放一次，不先按作画的尺寸缩放。",
        "想与已发表的问答和编辑评测看到同样的图片时设为 378。",
    ),
    "do_sample": SettingText(
        "Sample", "随机取词",
        "按概率随机取每个词元，而不是取最可能的。",
        "想要变化，或文字原地打转时打开。",
    ),
    "temperature": SettingText(
        "Temperature", "温度",
        "配合随机取词：大于 1 使概率更平，小于 1 更尖；0 取最可能的词元。",
        "想要更多变化时调高。",
    ),
    "top_k": SettingText(
        "Top k", "Top k",
        "配合随机取词：只在最可能的 k 个词元中取；0 为关闭。",
        "随机文字跑偏时设为 20 到 100。",
    ),
    "top_p": SettingText(
        "Top p", "Top p",
        "配合随机取词：只在合计达到此概率的最可能词元中取；1 为关闭。",
        "随机文字跑偏时设为 0.8 到 0.95。",
    ),
    "repetition_penalty": SettingText(
        "Repetition penalty", "重复惩罚",
        "降低已用过的词元的概率；1 为关闭。",
        "文字重复时略微调高（1.05 到 1.2）。",
    ),
    "stop": SettingText(
        "Stop texts", "停止文字",
        "回答在其中任一文字首次出现之前结束；每行一个，\\n 表示换行。",
        "已知回答的结尾（如换行）时填写。",
    ),
    "seed": SettingText(
        "Seed", "种子",
        "一切随机的起点；种子相同则结果相同，与同时运行的其他请求无关。",
        "比较设置时固定；留空则每次不同（所用的种子会写出）。",
    ),
}  # fmt: skip
