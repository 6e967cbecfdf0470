"""aioblock.bench: how fast an image is under many users at a time, and how long they wait.

jobs = [Job(image="disk.qcow2", mix={"read": 70, "write": 30}, depth=32, seconds=10)]
result = await Bench(jobs).run()

It uses the public names of aioblock only, as any service does.
"""

from .comparing import Comparison, Ratio, compare
from .job import Job
from .job_file import load_jobs, parse_jobs, parse_mix, parse_sizes
from .latencies import Latencies
from .processes import ProcessBench
from .report import html_report, short_time
from .results import JobResult, KindResult, Result, Usage, merged
from .running import Bench

__all__ = [
    "Bench",
    "ProcessBench",
    "Job",
    "load_jobs",
    "parse_jobs",
    "parse_mix",
    "parse_sizes",
    "Result",
    "JobResult",
    "KindResult",
    "Usage",
    "Latencies",
    "merged",
    "Comparison",
    "Ratio",
    "compare",
    "html_report",
    "short_time",
]
