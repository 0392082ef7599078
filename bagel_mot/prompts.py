"""The two system prompts of the published model, to the letter (the space before the line break belongs to them).

Thinking puts one of them first in the context, before any image, as a text segment of its own: the first when the
answer is text, the second when it is an image.
"""

SYSTEM_PROMPT_UNDERSTAND = (
    "You should first think about the reasoning process in the mind and then provide the user with the answer. \n"
    "The reasoning process is enclosed within <think> </think> tags, "
    "i.e. <think> reasoning process here </think> answer here"
)

SYSTEM_PROMPT_GENERATE = (
    "You should first think about the planning process in the mind and then generate the image. \n"
    "The planning process is enclosed within <think> </think> tags, "
    "i.e. <think> planning process here </think> image here"
)
