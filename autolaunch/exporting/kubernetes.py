"""Manifests for Kubernetes: a Deployment and its Service; a LeaderWorkerSet where one replica has several nodes."""

from __future__ import annotations

import re

from autolaunch.exporting.compose import (
    CORES,
    MODELS,
    SHARED_GIB_A_RANK,
    STOP_SECONDS,
    UV_IMAGE,
    checkpoint_folder,
    fetching,
)
from autolaunch.exporting.header import header
from autolaunch.exporting.steps import marker, revision
from autolaunch.exporting.values import File
from autolaunch.exporting.words import Raw, start_script
from autolaunch.exporting.work import EVERYWHERE, HEALTH, Work, gguf_patterns, slug, started
from autolaunch.exporting.yaml_text import Node, documents
from selector.facts import Hub

#: The variables in which the hubs' clients look for a token.
_TOKENS: dict[Hub, str] = {"huggingface": "HF_TOKEN", "modelscope": "MODELSCOPE_API_TOKEN"}
_DEVICES = {"nvidia": "nvidia.com/gpu", "amd": "amd.com/gpu"}
_LABEL = "app.kubernetes.io/name"
#: Room beside the checkpoint's own files, for what is under way.
_ROOM = 1.1
#: Set by the LeaderWorkerSet's controller in every container (https://lws.sigs.k8s.io/docs/reference/labels-annotations-and-environment-variables/).
_LEADER, _RANK = Raw("$(LWS_LEADER_ADDRESS)"), Raw("$(LWS_WORKER_INDEX)")


def kubernetes(work: Work) -> tuple[File, ...]:
    """``NAME.yaml``."""
    name = f"{work.slug}.yaml"
    nodes = work.candidate.parallel.nodes
    fetched = work.options.model_path is None
    every: list[Node] = []
    if fetched:
        every.append(_claim(work))
        if _shared(work):
            every.append(_job(work))
    every += [_service(work), _leader_worker_set(work) if nodes > 1 else _deployment(work)]
    kind = "leaderworkerset" if nodes > 1 else "deployment"
    how = [
        f"  kubectl create secret generic {work.slug}-api-key \\",
        '    --from-literal=api-key="$(openssl rand -hex 32)"',
        f"  kubectl apply -f {name}",
        f"  kubectl wait --for=condition=Available {kind}/{work.slug} --timeout=24h",
        f"  kubectl port-forward service/{work.slug} {work.options.port}",
    ]
    text = header(work, "Manifests for Kubernetes that serve", how, _told(work)) + documents(*every)
    return (File(name=name, text=text),)


def _told(work: Work) -> tuple[str, ...]:
    told = ["The key is in the secret, and clients send it with Authorization: Bearer."]
    devices = work.devices(1)
    if work.kind == "nvidia" and devices and devices[0].name:
        product = devices[0].name.replace(" ", "-")
        told.append(
            "It runs on any node with as many GPUs. To hold it to those that were planned with, give the pods "
            f"nodeSelector nvidia.com/gpu.product, {product} for instance (kubectl get nodes -L "
            "nvidia.com/gpu.product tells)."
        )
    if work.candidate.parallel.nodes > 1:
        told.append("It takes LeaderWorkerSet 0.6 or later: https://lws.sigs.k8s.io/docs/installation/")
    if work.options.model_path is not None:
        told.append(f"{work.options.model_path} has to be on every node that runs it.")
    elif _shared(work):
        told.append("Its pods share one volume of weights: the storage class has to offer ReadWriteMany.")
    if work.replicas > 1:
        told.append("Its service hands connections to the replicas at random, whatever they have to do.")
    if work.container().user is None:
        told.append("The image runs as root, without capabilities.")
    return tuple(told)


def _shared(work: Work) -> bool:
    """Whether several pods read the weights: then a job of its own fetches them."""
    return work.replicas > 1 or work.candidate.parallel.nodes > 1


def _meta(work: Work, ending: str = "") -> dict[str, Node]:
    return {"name": f"{work.slug}{ending}", "labels": {_LABEL: work.slug}}


def _claim(work: Work) -> Node:
    gib = -(-int(work.candidate.checkpoint.download_bytes * _ROOM) // 2**30)
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": _meta(work, "-weights"),
        "spec": {
            "accessModes": ["ReadWriteMany" if _shared(work) else "ReadWriteOnce"],
            "resources": {"requests": {"storage": f"{max(gib, 1)}Gi"}},
        },
    }


def _job(work: Work) -> Node:
    pinned = revision(work)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        # A job cannot be changed: another revision is another one.
        "metadata": _meta(work, "-weights" + ("" if pinned is None else f"-{slug(pinned)[:12].strip('-')}")),
        "spec": {
            "backoffLimit": 20,
            "template": {
                "metadata": {"labels": {_LABEL: f"{work.slug}-weights"}},
                "spec": {
                    **_pod(work),
                    "restartPolicy": "OnFailure",
                    "containers": [_fetching(work)],
                    "volumes": [_weights_volume(work)],
                },
            },
        },
    }


def _fetching(work: Work) -> Node:
    """The container that fetches the weights. It goes on where it was, and says when they are whole."""
    folder = checkpoint_folder(work)
    image, argv = fetching(work)
    script = '[ -e "$0" ] && exit 0; "$@" && touch "$0"'
    return {
        "name": "weights",
        "image": image,
        "command": _argv(("/bin/sh", "-c", script, f"{folder}/{marker(work)}", *argv)),
        "env": [
            {
                "name": _TOKENS[work.candidate.checkpoint.hub],
                "valueFrom": {"secretKeyRef": {"name": f"{work.slug}-hub-token", "key": "token", "optional": True}},
            },
            # Whoever it runs as has a place for what it keeps.
            {"name": "HF_HOME", "value": f"{MODELS}/.hub"},
            {"name": "HOME", "value": "/tmp"},  # noqa: S108 - the container's own
            *([{"name": "UV_CACHE_DIR", "value": "/tmp/uv"}] if image == UV_IMAGE else []),  # noqa: S108 - the container's own
        ],
        "volumeMounts": [{"name": "weights", "mountPath": str(MODELS)}],
        "securityContext": _container_security(),
    }


def _waiting(work: Work) -> Node:
    """The container that waits for the job's end."""
    script = 'until [ -e "$0" ]; do sleep 5; done'
    return {
        "name": "weights",
        "image": work.container().reference,
        "command": _argv(("/bin/sh", "-c", script, f"{checkpoint_folder(work)}/{marker(work)}")),
        "volumeMounts": [{"name": "weights", "mountPath": str(MODELS), "readOnly": True}],
        "securityContext": _container_security(),
    }


def _pod(work: Work) -> dict[str, Node]:
    """What every pod is kept from."""
    security: dict[str, Node] = {"seccompProfile": {"type": "RuntimeDefault"}}
    prepared_for = work.container().user
    if prepared_for is not None:
        user, _, group = prepared_for.partition(":")
        security |= {"runAsNonRoot": True, "runAsUser": int(user), "runAsGroup": int(group), "fsGroup": int(group)}
        # A volume of hundreds of gigabytes is not walked through at every start.
        security["fsGroupChangePolicy"] = "OnRootMismatch"
    return {
        "automountServiceAccountToken": False,
        # Otherwise variables come in that begin with names of services, and some of them mean something to an engine.
        "enableServiceLinks": False,
        "securityContext": security,
    }


def _container_security() -> Node:
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _weights_volume(work: Work) -> Node:
    if work.options.model_path is not None:
        return {"name": "weights", "hostPath": {"path": work.options.model_path, "type": "Directory"}}
    return {"name": "weights", "persistentVolumeClaim": {"claimName": f"{work.slug}-weights"}}


def _service(work: Work) -> Node:
    selector: dict[str, Node] = {_LABEL: work.slug}
    if work.candidate.parallel.nodes > 1:
        selector = {"leaderworkerset.sigs.k8s.io/name": work.slug, "leaderworkerset.sigs.k8s.io/worker-index": "0"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _meta(work),
        "spec": {
            "selector": selector,
            "ports": [{"name": "http", "port": work.options.port, "targetPort": "http"}],
        },
    }


def _deployment(work: Work) -> Node:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _meta(work),
        "spec": {
            "replicas": work.replicas,
            # There are no devices for a second one beside the first.
            "strategy": {"type": "Recreate"},
            "progressDeadlineSeconds": max(86_400, work.start_seconds),
            "selector": {"matchLabels": {_LABEL: work.slug}},
            "template": {"metadata": {"labels": {_LABEL: work.slug}}, "spec": _serving_pod(work)},
        },
    }


def _leader_worker_set(work: Work) -> Node:
    nodes = work.candidate.parallel.nodes
    leader = ("--node-rank", "0", "--master-addr", _LEADER)
    worker = ("--node-rank", _RANK, "--master-addr", _LEADER, "--headless")
    return {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": _meta(work),
        "spec": {
            "replicas": work.replicas,
            # A worker that comes back alone finds no group to join: all of them begin again.
            "leaderWorkerTemplate": {
                "size": nodes,
                "restartPolicy": "RecreateGroupOnPodRestart",
                "leaderTemplate": {
                    "metadata": {"labels": {_LABEL: work.slug}},
                    "spec": _serving_pod(work, more=leader),
                },
                "workerTemplate": {
                    "metadata": {"labels": {_LABEL: work.slug}},
                    "spec": _serving_pod(work, more=worker, answers=False),
                },
            },
        },
    }


def _serving_pod(work: Work, *, more: tuple[str, ...] = (), answers: bool = True) -> Node:
    """The engine's pod; one that does not answer is watched by the one that does."""
    parallel, folder = work.candidate.parallel, checkpoint_folder(work)
    ranks, port = parallel.ranks // parallel.nodes, work.options.port
    each = started(work, 1, weights=folder, host=EVERYWHERE, port=port, choose_devices=False)
    argv = (work.container().program, *each.argv[1:], *more)
    if work.is_gguf:
        script = start_script(folder=str(folder), patterns=gguf_patterns(work))
        argv = ("/bin/sh", "-c", script, "sh", *argv)
    env: list[Node] = [{"name": name, "value": _expanded(value)} for name, value in sorted(each.environment.items())]
    if work.keyed and answers:
        secret: Node = {"secretKeyRef": {"name": f"{work.slug}-api-key", "key": "api-key"}}
        env.append({"name": work.behaviour.key_variable, "valueFrom": secret})
    fetched = work.options.model_path is None
    shared_gib = SHARED_GIB_A_RANK * ranks
    memory_gib = -(-work.candidate.memory.host_bytes // 2**30) + shared_gib
    requests: dict[str, Node] = {"cpu": CORES * ranks, "memory": f"{memory_gib}Gi"}
    resources: dict[str, Node] = {"requests": requests}
    if work.kind in _DEVICES:
        devices: dict[str, Node] = {_DEVICES[work.kind]: ranks}
        resources = {"requests": requests | devices, "limits": devices}
    container: dict[str, Node] = {
        "name": "engine",
        "image": work.container().reference,
        "command": _argv(argv),
        "env": env,
        "resources": resources,
        "volumeMounts": [
            {"name": "weights", "mountPath": str(MODELS if fetched else folder), "readOnly": True},
            {"name": "shared-memory", "mountPath": "/dev/shm"},  # noqa: S108 - the container's own
        ],
        "securityContext": _container_security(),
    }
    if answers:
        container |= {"ports": [{"name": "http", "containerPort": port}], **_probes(work)}
    pod = _pod(work)
    if fetched:
        pod["initContainers"] = [_waiting(work) if _shared(work) else _fetching(work)]
    return pod | {
        "terminationGracePeriodSeconds": STOP_SECONDS,
        "containers": [container],
        "volumes": [
            _weights_volume(work),
            {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": f"{shared_gib}Gi"}},
        ],
    }


def _probes(work: Work) -> dict[str, Node]:
    """Loading has its own time; after it, minutes without an answer are an end. A busy engine answers late."""
    asked: Node = {"path": HEALTH, "port": "http"}
    return {
        "startupProbe": {
            "httpGet": asked,
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": work.start_seconds // 10,
        },
        "readinessProbe": {"httpGet": asked, "periodSeconds": 10, "timeoutSeconds": 10, "failureThreshold": 3},
        "livenessProbe": {"httpGet": asked, "periodSeconds": 20, "timeoutSeconds": 20, "failureThreshold": 6},
    }


def _argv(argv: tuple[str, ...]) -> Node:
    return [str(each) if isinstance(each, Raw) else _expanded(each) for each in argv]


def _expanded(text: str) -> str:
    """``text`` so that Kubernetes leaves it as it is: it puts ``$(NAME)`` in, and makes one of two ``$``."""
    return re.sub(r"\$(?=[$(])", "$$$$", text)
