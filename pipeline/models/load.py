"""Load the teacher or the student of a finished stage."""

from pathlib import Path

from kdedge.files import load_json
from kdedge.inputs import InputSpec
from kdedge.pipeline.models.student import Student, build_student
from kdedge.pipeline.models.student_teacher import build_student_teacher
from kdedge.pipeline.models.teacher import Teacher, build_teacher, is_student
from kdedge.pipeline.models.weights import load_module

__all__ = [
    "STUDENT_DESCRIPTION",
    "STUDENT_WEIGHTS",
    "TEACHER_DESCRIPTION",
    "TEACHER_WEIGHTS",
    "load_student",
    "load_teacher",
]

TEACHER_WEIGHTS = "teacher.safetensors"
TEACHER_DESCRIPTION = "teacher.json"
STUDENT_WEIGHTS = "student.safetensors"
STUDENT_DESCRIPTION = "student.json"


def load_teacher(teacher_dir: Path) -> Teacher:
    """Load the teacher of a finished stage, in eval mode.

    Raises:
        InputError: The directory or a file in it is missing or damaged.
    """
    description = load_json(teacher_dir / TEACHER_DESCRIPTION, ("arch", "stem", "num_classes"))
    arch, classes, stem = (description[key] for key in ("arch", "num_classes", "stem"))
    if is_student(arch):
        teacher = build_student_teacher(arch, classes, InputSpec.from_record(description))
    else:  # earlier versions never resized, and had images only
        teacher = build_teacher(arch, classes, stem, description.get("image_size", 0), description.get("channels", 3))
    load_module(teacher, teacher_dir / TEACHER_WEIGHTS, f"a {arch} with {classes} classes")
    return teacher.eval()


def load_student(distill_dir: Path) -> Student:
    """Load the student of a finished stage, in eval mode.

    Raises:
        InputError: The directory or a file in it is missing, damaged, or of another architecture or class count.
    """
    description = load_json(distill_dir / STUDENT_DESCRIPTION, ("arch", "classes"))
    classes = len(description["classes"])
    widths = tuple(description.get("widths", ()))  # of a pruned student
    student = build_student(description["arch"], classes, InputSpec.from_record(description), widths)
    load_module(student, distill_dir / STUDENT_WEIGHTS, f"a {description['arch']!r} student with {classes} classes")
    return student.eval()
