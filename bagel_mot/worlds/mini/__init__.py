"""The picture world `mini`: scenes as data, and what comes of them.

Pictures (`draw`), captions, questions, edits, riddles and training documents are made from scenes; the judge (`parse`)
recovers the scene from a picture alone; `items` holds the evaluation. Everything is drawn from a `random.Random`, so a
seed fixes it on every machine.
"""

from bagel_mot.worlds.mini.captions import caption, caption_with_spec, describe
from bagel_mot.worlds.mini.draw import draw, draw_array
from bagel_mot.worlds.mini.edits import Edit, sample_chain, sample_edit
from bagel_mot.worlds.mini.parser import ParsedScene, ParsedThing, matches, parse, same_scene
from bagel_mot.worlds.mini.questions import QA, question, questions
from bagel_mot.worlds.mini.riddles import Riddle, sample_riddle
from bagel_mot.worlds.mini.sampling import sample_scene
from bagel_mot.worlds.mini.scene import Scene, SceneError, Thing
from bagel_mot.worlds.mini.spec import Spec, ThingSpec
from bagel_mot.worlds.mini.training_examples import Say, Show, TrainingExample, corpus, sample_example

__all__ = [
    "QA",
    "Edit",
    "ParsedScene",
    "ParsedThing",
    "Riddle",
    "Say",
    "Scene",
    "SceneError",
    "Show",
    "Spec",
    "Thing",
    "ThingSpec",
    "TrainingExample",
    "caption",
    "caption_with_spec",
    "corpus",
    "describe",
    "draw",
    "draw_array",
    "matches",
    "parse",
    "question",
    "questions",
    "same_scene",
    "sample_chain",
    "sample_edit",
    "sample_example",
    "sample_riddle",
    "sample_scene",
]
