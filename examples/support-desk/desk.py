"""What every agent here needs: the generated code, a server, the sidecar, and words for updates."""

import os
import pathlib
import signal
import sys
from concurrent import futures

import grpc
from google.protobuf import json_format

# `build` in mesh.toml makes the generated code; protoc writes it as a package of this folder.
sys.path.insert(0, str(pathlib.Path(__file__).parent / "gen"))

from attache.v1 import handler_pb2, handler_pb2_grpc, task_pb2  # noqa: E402

WORKERS = 16  # Threads; more than the `max_concurrent_tasks` of any agent here.
GRACE = 30.0  # Seconds that running work may take after SIGTERM.


def serve(handler):
    """Serves the handler where the sidecar calls it, until SIGTERM; then finishes what runs."""
    server = grpc.server(futures.ThreadPoolExecutor(WORKERS))
    handler_pb2_grpc.add_HandlerServicer_to_server(handler, server)
    server.add_insecure_port(os.environ["ATTACHE_LISTEN"])
    server.start()
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, lambda *_: server.stop(GRACE))
    server.wait_for_termination()


def sidecar():
    """A channel to our own sidecar, which speaks for us in the mesh."""
    # On a Unix socket gRPC would send the path as authority, which HTTP/2 servers refuse.
    options = [("grpc.default_authority", "localhost")]
    return grpc.insecure_channel(os.environ["ATTACHE_SIDECAR"], options)


def trace_of(context):
    """The trace that we are called in, as metadata: our calls with it stand below us."""
    known = ("traceparent", "tracestate")
    return [(key, value) for key, value in context.invocation_metadata() if key in known]


def text_of(request):
    """All text of the request's input."""
    parts = [part for message in request.inputs for part in message.parts]
    return "\n".join(part.text for part in parts if part.WhichOneof("content") == "text")


def data_of(request):
    """The first JSON object of the request's input, or an empty one."""
    for part in (part for message in request.inputs for part in message.parts):
        if part.WhichOneof("content") == "data":
            data = json_format.MessageToDict(part.data)
            return data if isinstance(data, dict) else {}
    return {}


def text(sentence):
    return task_pb2.Part(text=sentence, media_type="text/plain")


def data(value):
    part = task_pb2.Part(media_type="application/json")
    json_format.ParseDict(value, part.data)
    return part


def progress(fraction, stage, message):
    """How far we are: fraction from 0 to 1, a word for the stage, a sentence."""
    step = task_pb2.Progress(fraction=fraction, stage=stage, message=message)
    return handler_pb2.HandleResponse(progress=step)


def result(*parts):
    """The last update of work that went well."""
    return handler_pb2.HandleResponse(result=task_pb2.TaskResult(parts=parts))


def failure(reason, message, code):
    """The last update of work that did not: a stable word, a sentence, and a gRPC status code."""
    end = task_pb2.Failure(reason=reason, message=message, code=code.value[0])
    return handler_pb2.HandleResponse(failure=end)
