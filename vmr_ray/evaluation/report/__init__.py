"""The report on an evaluation: what the model can do, where it fails, and what was measured."""

from vmr_ray.evaluation.report.cases import Case, choose
from vmr_ray.evaluation.report.measurements import Answers, measures
from vmr_ray.evaluation.report.write import write_report

__all__ = ["Answers", "Case", "choose", "measures", "write_report"]
