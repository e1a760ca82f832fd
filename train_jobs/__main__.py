"""`python -m train_jobs`: run a training job on a control plane that is up; also what `ray job submit` runs."""

from train_jobs.cli import main

main()
