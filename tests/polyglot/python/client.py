"""Runs a task and prints what happens, a JSON object per line: first the task, then every event.

    client.py run SIDECAR SKILL TEXT
    client.py discover REGISTRY SERVER_NAME IDENTITY SKILL TEXT

`run` calls a sidecar's local listener, as an agent does. `discover` has no sidecar: over mutual
TLS it asks the registry for somebody, and calls that agent's sidecar.
"""

import json
import pathlib
import sys

import grpc

from attache.v1 import agent_pb2, agent_pb2_grpc, registry_pb2, registry_pb2_grpc, task_pb2

LIMIT = 50  # Seconds; of the whole task.


def local(address):
    # On a Unix socket gRPC would send the path as authority, which HTTP/2 servers refuse.
    return grpc.insecure_channel(address, [("grpc.default_authority", "localhost")])


def mutual_tls(address, server_name, identity):
    ca, key, cert = (
        (pathlib.Path(identity) / name).read_bytes() for name in ("ca.pem", "key.pem", "cert.pem")
    )
    credentials = grpc.ssl_channel_credentials(ca, key, cert)
    return grpc.secure_channel(address, credentials, [("grpc.ssl_target_name_override", server_name)])


def discovered(address, server_name, identity, skill):
    with mutual_tls(address, server_name, identity) as channel:
        registry = registry_pb2_grpc.RegistryStub(channel)
        selector = registry_pb2.Selector(skill=skill)
        found = registry.Discover(registry_pb2.DiscoverRequest(selector=selector), timeout=LIMIT)
    instance = found.instances[0]
    return mutual_tls(instance.endpoints[0], instance.tls_server_name, identity)


def run(channel, skill, text):
    spec = agent_pb2.TaskSpec(
        selector=registry_pb2.Selector(skill=skill), input=[task_pb2.Part(text=text)]
    )
    spec.options.timeout.FromSeconds(LIMIT)
    agent = agent_pb2_grpc.AgentStub(channel)
    for response in agent.RunTask(agent_pb2.RunTaskRequest(spec=spec), timeout=LIMIT):
        update = response.update
        if update.HasField("task"):
            print(json.dumps({"task": update.task.id}))
        if update.HasField("event"):
            event = update.event
            line = {"seq": event.seq, "state": task_pb2.TaskState.Name(event.state)}
            line["kind"] = event.WhichOneof("kind")
            if event.HasField("result"):
                line["text"] = "".join(part.text for part in event.result.parts)
            if event.HasField("failure"):
                line["reason"], line["message"] = event.failure.reason, event.failure.message
            print(json.dumps(line))


if __name__ == "__main__":
    verb, *arguments, wanted, said = sys.argv[1:]
    with local(*arguments) if verb == "run" else discovered(*arguments, wanted) as sidecar:
        run(sidecar, wanted, said)
