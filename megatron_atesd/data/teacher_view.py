"""What the teacher sees of a problem, by the settings of the exposure: the only way to a teacher's prompt within a run."""

from collections.abc import Sequence

from megatron_atesd.config import ExposureConfig
from megatron_atesd.data.prompts import PromptRenderer
from megatron_atesd.data.reveal import split_reference
from megatron_atesd.data.shuffled import ShuffledReferences
from megatron_atesd.records import Problem, TeacherContext


class TeacherView:
    """The teacher's context of the problems of a run, at any exposure."""

    def __init__(self, renderer: PromptRenderer, exposure: ExposureConfig, seed: int, *files: Sequence[Problem]) -> None:
        """files: all the problems that there are, for exposure.reference shuffled, which draws by `seed`. Raises DataError: see there."""
        self.renderer, self.exposure = renderer, exposure
        self.shuffled = ShuffledReferences(seed, *files) if exposure.reference == "shuffled" else None

    def context(self, problem: Problem, alpha: float) -> TeacherContext:
        """At reveal ratio `alpha`; in mode none it is the student's prompt. Raises DataError beyond prompt.max_length tokens."""
        if self.exposure.mode == "none":
            return TeacherContext(self.renderer.student(problem), 0, len(split_reference(problem).segments))
        if self.exposure.reference == "none":
            return self.renderer.bare_teacher(problem)
        return self.renderer.teacher(problem, alpha, self.shuffled.of(problem) if self.shuffled else None)
