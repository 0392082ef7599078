"""The texts of the page in English and Chinese. Names and effects of settings are in `texts.settings`."""

from __future__ import annotations

TEXTS: dict[str, dict[str, str]] = {
    "head": {
        "en": "<h1><i></i>BAGEL</h1><p>One model that draws, edits, answers and talks{name}</p>",
        "zh": "<h1><i></i>BAGEL</h1><p>一个模型，能画、能改、能答、能聊{name}</p>",
    },
    # tabs
    "create": {"en": "Create", "zh": "作画"},
    "edit": {"en": "Edit", "zh": "修改"},
    "ask": {"en": "Ask", "zh": "提问"},
    "chat": {"en": "Chat", "zh": "对话"},
    # inputs
    "prompt": {"en": "What to draw", "zh": "画什么"},
    "prompt_hint": {"en": "a red car below a yellow sun", "zh": "例如 a red car below a yellow sun"},
    "instruction": {"en": "What to change", "zh": "怎么改"},
    "instruction_hint": {"en": "make the car blue", "zh": "例如 make the car blue"},
    "question": {"en": "Question", "zh": "问题"},
    "question_hint": {"en": "How many cars are there?", "zh": "例如 How many cars are there?"},
    "pictures": {"en": "Pictures", "zh": "图片"},
    "pictures_optional": {"en": "Pictures, if any", "zh": "图片（可不给）"},
    "examples": {"en": "Examples", "zh": "示例"},
    "count": {"en": "Pictures at once", "zh": "一次画几张"},
    "count_info": {
        "en": "Drawn together, with a seed of their own each. More take longer.",
        "zh": "一起绘制，每张用各自的种子。张数越多，用时越长。",
    },
    # buttons
    "draw": {"en": "Draw", "zh": "开始画"},
    "change": {"en": "Change it", "zh": "开始改"},
    "answer_it": {"en": "Ask", "zh": "提问"},
    "stop": {"en": "Stop", "zh": "停止"},
    "again": {"en": "Go on with this picture", "zh": "接着改这张"},
    "to_edit": {"en": "Edit this picture", "zh": "修改这张"},
    "to_ask": {"en": "Ask about it", "zh": "就它提问"},
    "send": {"en": "Send", "zh": "发送"},
    "new_chat": {"en": "New", "zh": "新对话"},
    "branch": {"en": "Branch off", "zh": "另开分支"},
    "undo": {"en": "Undo", "zh": "撤回"},
    "close": {"en": "Close", "zh": "关闭"},
    "reset": {"en": "Reset", "zh": "恢复默认"},
    "dice": {"en": "⚄ Roll", "zh": "⚄ 随机"},
    "last_seed": {"en": "Last one", "zh": "上一个"},
    "no_seed": {"en": "New each time", "zh": "每次不同"},
    # presets
    "fast": {"en": "Fast", "zh": "快速"},
    "balanced": {"en": "Balanced", "zh": "均衡"},
    "fine": {"en": "Fine", "zh": "精细"},
    "gentle": {"en": "Gentle", "zh": "轻微"},
    "strong": {"en": "Strong", "zh": "强烈"},
    "exact": {"en": "Exact", "zh": "稳定"},
    "varied": {"en": "Varied", "zh": "多样"},
    # settings
    "settings": {"en": "All settings", "zh": "全部设置"},
    "restore": {"en": "A PNG file that was made here", "zh": "一张在这里画出的 PNG 图片"},
    "restore_title": {"en": "Restore prompt and settings from a picture", "zh": "从图片恢复文字与设置"},
    "restored": {"en": "Prompt and settings are those of the picture.", "zh": "文字与设置已恢复为图片所用。"},
    "size_default": {"en": "the model's own · {size}", "zh": "模型默认 · {size}"},
    "size_picture": {"en": "as the last picture", "zh": "与最后一张图片相同"},
    "size_chat": {"en": "as the last picture, else {size}", "zh": "与最后一张图片相同，否则 {size}"},
    "interval_low": {"en": "{label}: from", "zh": "{label}：起"},
    "interval_high": {"en": "{label}: to", "zh": "{label}：止"},
    "chat_settings": {
        "en": "Left as they are, pictures that follow a picture are drawn with the defaults for edits.",
        "zh": "若不改动，跟在图片之后的绘制将使用“修改”的默认值。",
    },
    # results
    "results": {"en": "Pictures drawn", "zh": "画出的图片"},
    "answer": {"en": "Answer", "zh": "回答"},
    "thinking": {"en": "Thinking", "zh": "思考"},
    "is_waiting": {"en": "Waiting for its turn …", "zh": "排队中……"},
    "is_thinking": {"en": "Thinking …", "zh": "思考中……"},
    "is_reading": {"en": "Reading …", "zh": "读取中……"},
    "is_writing": {"en": "Writing …", "zh": "书写中……"},
    "step": {"en": "Step {done} of {total}", "zh": "第 {done} 步，共 {total} 步"},
    "left": {"en": "{seconds}\u00a0s left", "zh": "还剩 {seconds} 秒"},
    "is_stopping": {"en": "Stopping …", "zh": "正在停止……"},
    "stopped": {"en": "Stopped.", "zh": "已停止。"},
    "stopped_at": {"en": "Stopped after step {done} of {total}.", "zh": "已在第 {done} 步停止（共 {total} 步）。"},
    "seed_is": {"en": "seed {seed}", "zh": "种子 {seed}"},
    "seeds_are": {"en": "seeds {seeds}", "zh": "种子 {seeds}"},
    "steps_were": {"en": "{steps} steps", "zh": "{steps} 步"},
    "seconds_were": {"en": "{seconds}\u00a0s", "zh": "{seconds} 秒"},
    "broke_off": {"en": "The text ended at its limit of tokens.", "zh": "文字因达到词元上限而中断。"},
    "no_answer": {"en": "(no answer)", "zh": "（没有回答）"},
    # chat
    "conversation": {"en": "Conversation", "zh": "对话"},
    "message": {"en": "Message", "zh": "消息"},
    "message_hint": {
        "en": "Write, or add pictures; Send answers, Draw draws.",
        "zh": "写点什么，或添加图片；“发送”得到回答，“开始画”得到图片。",
    },
    "chat_empty": {
        "en": "### Pictures and words, in turns\n"
        "Show a picture and ask about it. Or say what to draw, and press **Draw**.",
        "zh": "### 图文交替的对话\n给一张图片，再提问；或说出要画什么，然后按 **开始画**。",
    },
    "chat_full": {
        "en": "the conversations that are open hold {held} tokens, and this service has room for {room}: "
        "close one, or try again later.",
        "zh": "当前打开的对话共占 {held} 个词元，而本服务只容得下 {room} 个：请关闭一个，或稍后再试。",
    },
    # errors
    "failed": {
        "en": "something went wrong on the server; nothing of this page was lost, so try again.",
        "zh": "服务器出了差错；页面上的内容没有丢失，请再试一次。",
    },
    # in Chinese the kind of an error goes before its English sentence; the page's own errors are translated whole
    "image_error": {"en": "{sentence}", "zh": "图片无法使用：{sentence}"},
    "prompt_error": {"en": "{sentence}", "zh": "文字无法使用：{sentence}"},
    "size_error": {"en": "{sentence}", "zh": "尺寸不合适：{sentence}"},
    "setting_error": {"en": "{sentence}", "zh": "设置不合适：{sentence}"},
    "context_error": {"en": "{sentence}", "zh": "内容太长，请缩短或另开对话：{sentence}"},
    "closed_error": {"en": "{sentence}", "zh": "服务器正在关闭：{sentence}"},
    "busy_error": {"en": "{sentence}", "zh": "现在请求太多，请稍后再试：{sentence}"},
    "limit_error": {"en": "{sentence}", "zh": "超出了这台服务器的限制：{sentence}"},
    "memory_error": {"en": "{sentence}", "zh": "内存不足：{sentence}"},
    "device_error": {"en": "{sentence}", "zh": "设备无法执行：{sentence}"},
    "own_error": {"en": "{sentence}", "zh": "{sentence}"},
    "nothing_drawn": {"en": "there is no picture yet: draw one first.", "zh": "还没有图片：请先画一张。"},
    "no_picture": {
        "en": "there is no picture to change: add one, or use Create.",
        "zh": "没有可修改的图片：请先添加一张，或使用“作画”。",
    },
}
