"""Videos + annotations -> index: embed, train, evaluate and index, in one job.

    ray job submit --working-dir . -- python jobs/pipeline.py s3://archive/videos \\
        --annotations train.jsonl --test test.jsonl --out s3://archive/vmr

The same command resumes at the step that failed. The flags are those of `vmr pipeline`, and may stand in the
section `pipeline` of a `--config` file; the last line printed is the result of every step as JSON.
Exit codes: 0 done, 1 the work failed, 2 a mistake in the input.
"""

from vmr_ray.cli import run_job

if __name__ == "__main__":
    run_job("pipeline")
