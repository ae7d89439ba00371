"""The configuration of a run, in sections that each package declares next to its code.

One frozen dataclass per section. The command line makes a flag of every field (``flag`` in its metadata), a TOML
file has a table per section and a key per field; precedence is flag, then ``--config`` file, then preset, then the
default of the field. `kdedge.pipeline.config.build` merges them, and the options of a recipe.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from kdedge.benchmarks.options import BenchmarkConfig
from kdedge.export.options import BundleConfig, ExportConfig, QuantizeConfig
from kdedge.pipeline.data.options import DataConfig
from kdedge.pipeline.distill.options import DistillConfig
from kdedge.pipeline.tracking import TrackingConfig
from kdedge.pipeline.training.options import RuntimeConfig, TeacherConfig, TrainingConfig

__all__ = ["SECTIONS", "Config"]


@dataclass(frozen=True)
class Config:
    """The whole configuration; each attribute is a table of the TOML file."""

    preset: str = "default"
    data: DataConfig = field(default_factory=DataConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)
    benchmark: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    bundle: BundleConfig = field(default_factory=BundleConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


SECTIONS: dict[str, Any] = {
    item.name: item.default_factory for item in dataclasses.fields(Config) if item.name != "preset"
}
