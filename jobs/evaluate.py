"""Checkpoint + feature store + annotations -> metrics.

    ray job submit --working-dir . -- python jobs/evaluate.py features --annotations test.jsonl \\
        --checkpoint run/best

The flags are those of `vmr evaluate`; the last line printed is the result as JSON.
Exit codes: 0 done, 1 the work failed, 2 a mistake in the input.
"""

from vmr_ray.cli import run_job

if __name__ == "__main__":
    run_job("evaluate")
