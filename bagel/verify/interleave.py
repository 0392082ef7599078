from bagel.verify.parts import Subject
from bagel.verify.records import Checker


def check_interleave(subject: Subject, check: Checker) -> None:
    raise NotImplementedError
