"""An agent of grpcio that serves `mesh.test.Kinds`, with no generated code: messages are bytes.

Listens at $ATTACHE_LISTEN. Each method is one of the four kinds. All of them send back, among the
headers of the answer, the metadata they got (`x-` and the mesh's own, as `got-...`), and a trailer
`x-sum-bin` with the number of bytes that came. A first message of `fail:CODE` fails the call with
that code, a text that is not ASCII, and `grpc-status-details-bin`; one of `left` tells how many
milliseconds of its deadline a call has left.
"""

import os
import signal
from concurrent import futures

import grpc

TEXT = "zu spät → 100%"
DETAILS = bytes(range(256))


def trailing(context, count):
    return (("x-sum-bin", count.to_bytes(8, "big")), ("x-sum", str(count)))


def begin(context):
    got = context.invocation_metadata()
    kept = [one for one in got if one.key.startswith(("x-", "attache-"))]
    context.send_initial_metadata([(f"got-{key}", value) for key, value in kept])


def checked(message, context, count):
    """Fails the call if the message wants that; what is answered to it otherwise."""
    if message.startswith(b"fail:"):
        code = next(c for c in grpc.StatusCode if c.value[0] == int(message[5:]))
        details = (("grpc-status-details-bin", DETAILS),)
        context.set_trailing_metadata(trailing(context, count) + details)
        context.abort(code, TEXT)
    if message == b"left":
        left = context.time_remaining()
        return b"none" if left is None or left > 1e9 else str(int(left * 1000)).encode()
    return message


def unary(request, context):
    begin(context)
    answer = checked(request, context, len(request))
    context.set_trailing_metadata(trailing(context, len(request)))
    return answer


def client_stream(requests, context):
    begin(context)
    whole = b""
    for message in requests:
        whole += checked(message, context, len(whole))
    context.set_trailing_metadata(trailing(context, len(whole)))
    return whole


def server_stream(request, context):
    begin(context)
    answer = checked(request, context, len(request))
    for _ in range(3):
        yield answer
    context.set_trailing_metadata(trailing(context, len(request)))


def both(requests, context):
    begin(context)
    count = 0
    for message in requests:
        count += len(message)
        yield checked(message, context, count)
    context.set_trailing_metadata(trailing(context, count))


def main():
    server = grpc.server(futures.ThreadPoolExecutor(8))
    methods = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
        "ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
        "Both": grpc.stream_stream_rpc_method_handler(both),
    }
    handler = grpc.method_handlers_generic_handler("mesh.test.Kinds", methods)
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(os.environ["ATTACHE_LISTEN"])
    server.start()
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, lambda *_: server.stop(1))
    server.wait_for_termination()


main()
