"""Prove the plan on this machine without the weights, and go on only when it holds.

python rehearse_first.py glm-4.6
"""

import sys

import autolaunch


def main(model: str) -> None:
    plan = autolaunch.plan(model)
    result = autolaunch.rehearse(plan)
    for step in result.steps:
        verdict = "not tried" if step.ok is None else "ok" if step.ok else "failed"
        print(f"{step.name}: {verdict} ({step.message})")
    for each in result.figures:
        print(f"{each.name}: {each.predicted:,.0f} {each.unit} foretold, {each.measured:,.0f} measured")
    if result.failure is not None:
        raise SystemExit(f"{result.failure.message}\n{result.failure.hint or ''}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "glm-tiny")
