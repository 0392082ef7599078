"""The toy world `mini`: scenes as data, and images and texts made from them.

Images (`draw`), captions, questions, edits, riddles and training examples are made from scenes; the parser (`parse`)
recovers the scene from an image alone; `items` holds the evaluation items. All randomness comes from a `random.Random`,
so a seed gives the same result on every machine.
"""
