"""Students of kdedge as teachers (``--teacher kdedge/NAME``), of smaller students or where a ResNet-18 is too slow.

S. I. Mirzadeh et al., "Improved Knowledge Distillation via Teacher Assistant" (arXiv:1902.03393): a network between
teacher and student, itself distilled, as the teacher of the student.
"""

from kdedge.errors import InputError
from kdedge.inputs import InputSpec
from kdedge.pipeline.models.registry import STUDENTS
from kdedge.pipeline.models.student import build_student
from kdedge.pipeline.models.teacher import STUDENT_PREFIX, Teacher

__all__ = ["build_student_teacher"]


def build_student_teacher(arch: str, num_classes: int, inputs: InputSpec) -> Teacher:
    """Build a student of kdedge with random weights as a teacher; hints can use the maps of all its blocks.

    Args:
        arch: ``kdedge/NAME`` of a registered student.
        num_classes: Number of classes.
        inputs: Its inputs. Images of another size are resized to theirs.

    Raises:
        InputError: The student is unknown or for other inputs.
    """
    name = arch.removeprefix(STUDENT_PREFIX)
    fitting = [known for known, spec in STUDENTS.items() if spec.signal == (inputs.kind == "signal")]
    if name not in fitting:
        names = " or ".join(f"{STUDENT_PREFIX}{known}" for known in fitting)
        raise InputError(f"--teacher {arch} is not for {inputs.kind}s", f"use {names}")
    student = build_student(name, num_classes, inputs)
    size = inputs.size if inputs.kind == "image" else 0
    blocks = tuple(f"blocks.{index}" for index in range(len(student.blocks)))
    return Teacher(student, blocks=blocks, mean=(0.0,), std=(1.0,), image_size=size)
