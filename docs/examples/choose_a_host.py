"""Choose the host for a model before anything is downloaded: plan it on each, and compare.

Each argument is a machine: a name such as 8xh100, or a file of `autolaunch probe --json` from that host.

python choose_a_host.py glm-4.6 8xh100 4xa100-80gb ./host.json
"""

import sys

import autolaunch


def main(model: str, hosts: list[str]) -> None:
    found: list[tuple[float, str, autolaunch.Candidate]] = []
    for host in hosts:
        plan = autolaunch.plan(model, hardware=host, objective="throughput", context_tokens=32_768)
        chosen = plan.chosen
        if chosen is None:
            print(f"{host}: nothing fits")
            for advice in plan.advice[:1]:
                print(f"  {advice.message}")
            continue
        speed = chosen.speed.throughput_tokens_per_second or 0.0
        found.append((speed, host, chosen))
        print(f"{host}: {chosen.checkpoint.repo} with {chosen.engine.name}, about {speed:,.0f} tokens/s")
    if not found:
        raise SystemExit(3)
    _, host, chosen = max(found, key=lambda each: each[0])
    print(f"best is {host}: {chosen.checkpoint.download_bytes or 0:,} bytes to fetch there")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
