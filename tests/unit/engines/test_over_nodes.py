"""An engine over the nodes of a cluster: its command, its interfaces, what stays on the head."""

from __future__ import annotations

import msgspec
import pytest

from autolaunch import api
from engines.base import Serving
from engines.over_nodes import OverNodes, interface_of, kept_back, network_environment
from engines.registry import engine
from selector.catalog import Catalog
from selector.contract import LaunchPlan
from selector.hardware import Cpu, Host, NetworkKind, NetworkPort, Node
from selector.request import Pins

SECRET = "k" * 64


def node(address: str | None, *ports: NetworkPort, index: int = 0) -> Node:
    return Node(index=index, name=f"n{index}", address=address, host=Host(os="linux", cpu=Cpu()), network=ports)


def port(
    interface: str | None, *addresses: str, kind: NetworkKind = "ethernet", device: str | None = None
) -> NetworkPort:
    return NetworkPort(kind=kind, interface=interface, device=device, addresses=addresses)


def over(**changed: object) -> OverNodes:
    place = OverNodes(
        address="10.0.0.1:6379",
        ranks=("10.0.0.1",) * 8 + ("10.0.0.2",) * 8,
        here="10.0.0.1",
        group="autolaunch-glm",
        environment=(("GLOO_SOCKET_IFNAME", "eth0"), ("NCCL_SOCKET_IFNAME", "=eth0")),
    )
    return msgspec.structs.replace(place, **changed)


@pytest.fixture
def two_by_eight(catalog: Catalog) -> LaunchPlan:
    pins = Pins(engine="vllm", format="bf16", tensor_parallel=8, pipeline_parallel=2)
    plan = api.plan("glm-4.6", hardware="2x8xh100", known=catalog, pins=pins)
    assert plan.chosen is not None, plan.explain()
    return plan


def test_a_launch_over_nodes_runs_the_server_behind_a_placement_group_of_its_ranks(
    catalog: Catalog, two_by_eight: LaunchPlan
) -> None:
    chosen = two_by_eight.chosen
    assert chosen is not None
    serving = Serving(model="/w/glm", served_name="glm-4.6", executable_directory="/e/bin", over=over(), api_key=SECRET)
    command = engine("vllm").command(chosen, catalog.model("glm-4.6"), serving)
    ours, theirs = command.argv[: command.argv.index("--")], command.argv[command.argv.index("--") + 1 :]
    assert ours[:2] == ("/e/bin/python", "-P")
    assert ours[2].endswith("engines/shims/vllm_ray.py")
    assert ours[3:] == (
        *("--address", "10.0.0.1:6379", "--ranks", ",".join(("10.0.0.1",) * 8 + ("10.0.0.2",) * 8)),
        *("--group", "autolaunch-glm", "--wait", "60"),
    )
    assert theirs[:2] == ("--model", "/w/glm")
    assert theirs.count("--distributed-executor-backend") == 1
    assert command.env["NCCL_SOCKET_IFNAME"] == "=eth0"
    assert "CUDA_VISIBLE_DEVICES" not in command.env  # the devices are Ray's to give
    assert SECRET not in repr(command)


def test_a_plan_over_nodes_shows_the_command_that_a_person_would_type(two_by_eight: LaunchPlan) -> None:
    chosen = two_by_eight.chosen
    assert chosen is not None
    assert chosen.command is not None
    assert chosen.command.argv[:2] == ("vllm", "serve")
    assert "--distributed-executor-backend" in chosen.command.argv


def test_one_node_of_a_cluster_is_reached_through_ray_too(catalog: Catalog) -> None:
    pins = Pins(engine="vllm", tensor_parallel=8)
    chosen = api.plan("glm-4.6", hardware="8xh100", known=catalog, pins=pins).chosen
    assert chosen is not None
    serving = Serving(
        model="/w/glm", served_name="glm-4.6", executable_directory="/e/bin", over=over(ranks=("10.0.0.2",) * 8)
    )
    argv = engine("vllm").command(chosen, catalog.model("glm-4.6"), serving).argv
    assert argv[argv.index("--distributed-executor-backend") + 1] == "ray"


# --- interfaces --------------------------------------------------------------------------------------


def test_nodes_that_call_their_interface_the_same_have_it_named_to_both_libraries() -> None:
    nodes = (
        node("10.0.0.1", port("docker9", "172.17.0.1"), port("ens5", "10.0.0.1")),
        node("10.0.0.2", port("ens5", "10.0.0.2"), index=1),
    )
    assert dict(network_environment(nodes, "10.0.0.1", {})) == {
        "VLLM_HOST_IP": "10.0.0.1",
        "NCCL_SOCKET_IFNAME": "=ens5",
        "GLOO_SOCKET_IFNAME": "ens5",
    }


def test_names_that_differ_are_a_list_for_nccl_and_left_to_gloo() -> None:
    nodes = (node("10.0.0.1", port("ens5", "10.0.0.1")), node("10.0.0.2", port("eth0", "10.0.0.2"), index=1))
    found = dict(network_environment(nodes, "10.0.0.1", {}))
    assert found["NCCL_SOCKET_IFNAME"] == "=ens5,eth0"
    assert "GLOO_SOCKET_IFNAME" not in found


def test_an_interface_that_is_not_known_is_not_guessed() -> None:
    nodes = (node("10.0.0.1", port("ens5", "10.0.0.1")), node("10.0.0.2", index=1), node(None, index=2))
    assert dict(network_environment(nodes, "10.0.0.1", {})) == {"VLLM_HOST_IP": "10.0.0.1"}


def test_the_loopback_is_taken_for_a_cluster_on_loopback_alone() -> None:
    assert interface_of(node("127.0.0.3")) == "lo"
    assert interface_of(node("10.0.0.1", port("ens5", "10.0.0.9"))) is None
    assert interface_of(node("fd00::1", port("ens5", "10.0.0.1", "fd00:0::1"))) == "ens5"
    assert interface_of(node("a-name")) is None


def test_what_the_user_has_set_stays_as_it_is() -> None:
    nodes = (node("10.0.0.1", port("ens5", "10.0.0.1")),)
    found = dict(network_environment(nodes, "10.0.0.1", {"NCCL_SOCKET_IFNAME": "bond0", "VLLM_HOST_IP": "1.2.3.4"}))
    assert found == {"VLLM_HOST_IP": "10.0.0.1", "GLOO_SOCKET_IFNAME": "ens5"}


def test_infiniband_is_named_to_nccl_only_where_other_rdma_is_beside_it() -> None:
    both = node(
        "10.0.0.1",
        port("ens5", "10.0.0.1", kind="roce", device="mlx5_8:1"),
        port(None, kind="infiniband", device="mlx5_0:1"),
        port(None, kind="infiniband", device="mlx5_1:1"),
    )
    assert dict(network_environment((both,), "10.0.0.1", {}))["NCCL_IB_HCA"] == "=mlx5_0:1,mlx5_1:1"
    alone = node("10.0.0.1", port(None, kind="infiniband", device="mlx5_0:1"))
    assert "NCCL_IB_HCA" not in dict(network_environment((alone,), "10.0.0.1", {}))


# --- what stays on the head --------------------------------------------------------------------------


def test_the_key_and_the_heads_own_paths_do_not_travel_to_the_ranks() -> None:
    environment = {
        "VLLM_API_KEY": SECRET,
        "VLLM_CONFIG_ROOT": "/run/x",
        "HF_HOME": "/run/x/.cache",
        "HOME": "/root",
        "PATH": "/bin",
        "MY_PASSWORD": "x",
        "NCCL_DEBUG": "INFO",
        "GLOO_SOCKET_IFNAME": "eth0",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": SECRET,
    }
    kept = kept_back(environment, ("GLOO_SOCKET_IFNAME", "VLLM_NO_USAGE_STATS"))
    assert set(environment) - set(kept) == {
        "NCCL_DEBUG",
        "GLOO_SOCKET_IFNAME",
        "VLLM_NO_USAGE_STATS",
        "HF_HUB_OFFLINE",
        "RAY_AUTH_MODE",
    }
    assert SECRET not in kept
