"""Feature store + annotations, or captioned photos -> checkpoint.

    ray job submit --working-dir . -- python jobs/train.py features --annotations train.jsonl \\
        --out run --workers 4
    ray job submit --working-dir . -- python jobs/train.py --photos photos.parquet --out run

The flags are those of `vmr train`; the last line printed is the result as JSON.
Exit codes: 0 done, 1 the work failed, 2 a mistake in the input.
"""

from vmr_ray.cli import run_job

if __name__ == "__main__":
    run_job("train")
