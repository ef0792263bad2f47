"""Fits the directions along which layers encode numbers, for a training run to keep its biases off."""

from __future__ import annotations

from accelerate.utils import broadcast_object_list

from interventions.activations import Array
from reft_math.commands.processes import process_state
from reft_math.probes.number_measures import fit_number_directions
from reft_math.training import job as jobs

# Number of problems for fitting directions, and number read at once.
_PROBLEMS, _BATCH = 200, 16


def number_directions(job: jobs.TrainingSetup, site: str) -> Array:
    """Calls `fit_number_directions` on problems for neither training nor testing, if there are any.

    The main process fits; the others' last digits might differ, and their biases drift apart.
    """
    found: list[Array | None] = [None]
    if process_state().is_main_process:
        problems = (job.validation_problems or job.train_problems)[:_PROBLEMS]
        found = [fit_number_directions(job.model, jobs.completion_settings(job), problems, site, _BATCH)]
    directions: Array = broadcast_object_list(found)[0]
    return directions
