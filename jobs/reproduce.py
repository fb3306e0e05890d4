"""Published features + a recipe -> a benchmark's metrics.

    ray job submit --working-dir . -- python jobs/reproduce.py configs/charades_sta_i3d.yaml \\
        --features /data/i3d --annotations /data/charades_sta --out /data/charades_run

The flags are those of `vmr reproduce`; the last line printed is the result as JSON.
Exit codes: 0 done, 1 the work failed, 2 a mistake in the input.
"""

from vmr_ray.cli import run_job

if __name__ == "__main__":
    run_job("reproduce")
