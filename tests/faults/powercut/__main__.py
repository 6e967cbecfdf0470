"""`python -m tests.faults.powercut`: cut the power as often as wanted, replay a seed, or hunt for mutants."""

import argparse
import os
import sys

from tests.faults.powercut.campaign import plan_of, run_campaign, run_sweep
from tests.faults.powercut.explore import explore
from tests.faults.powercut.hunt import hunt_all
from tests.faults.powercut.layouts import LAYOUTS
from tests.faults.powercut.mutants import applied, mutants


def main() -> int:
    """The exit code: 0 all is sound, 1 something is not."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.powercut", description=__doc__)
    parser.add_argument("--states", type=int, default=200_000, help="how many states to look at")
    parser.add_argument("--layouts", default=",".join(LAYOUTS), help="only these, separated by commas")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many processes")
    parser.add_argument("--seed", default="", help="replay: layout/workload[/moment[/choice]]")
    parser.add_argument("--mutant", default="", help="with --seed: leave out this rule")
    parser.add_argument("--sequences", default="", metavar="LAYOUT", help="all sequences of up to three operations")
    parser.add_argument("--sweep", action="store_true", help="let every request to the files fail")
    parser.add_argument("--hunt", action="store_true", help="find a seed for each mutant, and write the table of them")
    args = parser.parse_args()
    if args.sweep:
        return run_sweep(args.layouts.split(","), args.jobs)
    if args.sequences:
        return run_campaign(None, [args.sequences], args.jobs)
    if args.hunt:
        return hunt_all(args.jobs)
    if args.seed:
        return replay(args.seed, args.mutant)
    return run_campaign(args.states, args.layouts.split(","), args.jobs)


def replay(seed: str, name: str) -> int:
    """Look at the states of one seed, and tell what is wrong with them."""
    if name:
        with applied(mutants()[name]):
            tally = explore(seed, plan_of(seed))
    else:
        tally = explore(seed, plan_of(seed))
    for failure in tally.failures:
        print(f"{failure.seed}\n    {failure.text}")
    print(f"{tally.states} states, went on from {tally.went_on}, {len(tally.failures)} failures")
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
